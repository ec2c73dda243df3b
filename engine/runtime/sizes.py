"""Batch sizes that the runtimes are tuned for."""

from engine.config.compute import Runtime

CPU_CHUNK = 32
"""Most rows of one request on a CPU: more brings no speed, and the activations leave the cache."""
CPU_REQUESTS = 2
"""A full call is cut into at least so many, which run side by side, each on a part of the cores."""


def batches(runtime: Runtime, rows: int) -> tuple[int, int, int]:
    """(min, tuned, max) rows of a network that is called with up to `rows`."""
    tuned = min(-(-rows // CPU_REQUESTS), CPU_CHUNK) if runtime == "openvino" else rows
    return 1, tuned, rows
