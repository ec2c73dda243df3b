"""Measure the median time of repeated calls, alternating candidates in one process."""

import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import FrameType

import torch

Call = Callable[[], object]
Measure = Callable[[Call, int], list[float]]
"""(call, repeats) -> the milliseconds of each repeat."""


def milliseconds(
    calls: dict[str, Call], device: torch.device, *, seconds: float = 1.0, cold: bool = False
) -> dict[str, float]:
    """Return the median time of each call in ms.

    Every call runs for five rounds of `seconds` / 5 each, at least once per round. Calls alternate, so that a
    machine that slows down slows all of them. On a GPU, CUDA events measure the time.

    With `cold`, the GPU's L2 cache is overwritten before each run, outside the measured time, so that a call
    reads its inputs from memory; the host launches the call meanwhile. Without it, a call finds what the
    previous call left in the cache, as the steps of a loop do. On a CPU, `cold` has no effect.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    measure: Measure = _cpu_ms
    between = 0.0
    if device.type == "cuda":
        evict = _evictor(device) if cold else None
        measure = partial(_gpu_ms, before=evict)
        between = statistics.median(_gpu_ms(evict, 3)) if evict else 0.0
    repeats = {}
    for name, call in calls.items():
        call()
        once = statistics.median(measure(call, 2)) + between
        repeats[name] = max(1, min(1000, int(1000 * seconds / 5 / max(once, 1e-3))))
    for _ in range(5):
        for name, call in calls.items():
            samples[name] += measure(call, repeats[name])
    return {name: statistics.median(times) for name, times in samples.items()}


def in_turns(calls: dict[str, Call], device: torch.device, *, runs: int = 3) -> dict[str, float]:
    """Return the median time of each call in ms over `runs` single runs, after one warm-up.

    For calls that take seconds.
    """
    measure = _gpu_ms if device.type == "cuda" else _cpu_ms
    for call in calls.values():
        call()
    samples = [{name: measure(call, 1)[0] for name, call in calls.items()} for _ in range(runs)]
    return {name: statistics.median(sample[name] for sample in samples) for name in calls}


def _cpu_ms(call: Call, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def _gpu_ms(call: Call, repeats: int, *, before: Call | None = None) -> list[float]:
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)
    ]
    for start, end in events:
        if before is not None:
            before()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside the block when the time is over; works in the main thread only.

    A running compilation or kernel is interrupted at its next return to Python.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@cache
def _evictor(device: torch.device) -> Callable[[], torch.Tensor]:
    """Return a call that overwrites twice the size of the GPU's L2 cache."""
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(size, dtype=torch.int8, device=device).zero_
