"""Medians of repeated calls, two candidates in turns in one process."""

import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


def milliseconds(calls: dict[str, Call], device: torch.device, *, seconds: float = 1.0) -> dict[str, float]:
    """The median time of each call, in ms, of five rounds; in each every call has `seconds` / 5, or one run.

    In turns, so that a machine that slows down slows all of them; on a GPU by its own events.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    measure = _gpu_ms if device.type == "cuda" else _cpu_ms
    repeats = {}
    for name, call in calls.items():
        call()
        once = statistics.median(measure(call, 2))
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


def _gpu_ms(call: Call, repeats: int) -> list[float]:
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)
    ]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]
