"""Medians of repeated calls, candidates in turns in one process."""

import statistics
import time
from collections.abc import Callable
from functools import cache, partial

import torch

Call = Callable[[], object]
Measure = Callable[[Call, int], list[float]]
"""(call, repeats) -> the milliseconds of each."""


def milliseconds(
    calls: dict[str, Call], device: torch.device, *, seconds: float = 1.0, cold: bool = False
) -> dict[str, float]:
    """Return the median time of each call, in ms, of five rounds of `seconds` / 5, or of one run, a call.

    In turns, so that a machine that slows down slows all of them; on a GPU by its own events. `cold`: on a
    GPU the L2 cache is overwritten before each run, outside the time measured, so that a call reads its
    inputs from memory; the host launches the call meanwhile. Else a call finds there what the one before
    left, as the steps of a loop do. On a CPU `cold` changes nothing.
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
    """The median time of each call, in ms, of so many single runs: for calls of seconds, warmed up once."""
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


@cache
def _evictor(device: torch.device) -> Callable[[], torch.Tensor]:
    """Return a call that writes twice what the GPU's L2 cache holds."""
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(size, dtype=torch.int8, device=device).zero_
