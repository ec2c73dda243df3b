"""A step of synthesis: larger batches, and several batches at once."""

from collections.abc import Mapping

import torch

from bench.smoke.probe import Probe
from bench.stages.synthesize import opened
from bench.timing import Call

SIZES = (100, 200, 1000)
SIZES_CPU = (4,)
AT_ONCE = (1, 2, 4)
STEPS = 5


def steps(probe: Probe) -> Mapping[str, object]:
    """Milliseconds of the recorded step, and the launches of the step as it was before."""
    found: dict[str, object] = {}
    for size in SIZES if probe.on_gpu else SIZES_CPU:
        inversion, _ = opened(probe.accelerator, size)
        found[f"batch {size}, ms"] = probe.ms(inversion.step)
        found[f"batch {size}, launches"] = probe.launches(inversion.update, f"synthesis-{size}")
    return found


def at_once(probe: Probe) -> Mapping[str, object]:
    """Milliseconds of a step of each of several batches of SIZES[0], each on a stream of its own."""
    probe.require_gpu()
    recorded = [opened(probe.accelerator, SIZES[0])[0].step for _ in range(max(AT_ONCE))]
    streams = [torch.cuda.Stream() for _ in recorded]

    def together(count: int) -> Call:
        def call() -> None:
            current = torch.cuda.current_stream()
            for stream, step in zip(streams[:count], recorded, strict=False):
                stream.wait_stream(current)
                with torch.cuda.stream(stream):
                    for _ in range(STEPS):
                        step()
            for stream in streams[:count]:
                current.wait_stream(stream)

        return call

    return {f"{count} x {SIZES[0]}, ms": probe.ms(together(count), 10) / STEPS for count in AT_ONCE}
