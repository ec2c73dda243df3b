"""Check the steps of synthesis and distillation: times, launches, graphs, and where the host waits."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch

from bench.smoke.probe import Probe
from bench.stages import distill, synthesize
from bench.timing import Call

SIZES = (100, 200, 1000)
SIZES_CPU = (4,)
AT_ONCE = (1, 2, 4)
STEPS = 5


def synthesis(probe: Probe) -> Mapping[str, object]:
    """Return the milliseconds of the captured step and the launches of the eager one, by batch size."""
    found: dict[str, object] = {}
    for size in SIZES if probe.on_gpu else SIZES_CPU:
        inversion, _ = synthesize.opened(probe.accelerator, size)
        found[f"batch {size}, ms"] = probe.ms(inversion.step)
        found[f"batch {size}, launches"] = probe.launches(inversion.update, f"synthesis-{size}")
    return found


def synthesis_at_once(probe: Probe) -> Mapping[str, object]:
    """Return the milliseconds of a step with 1, 2 and 4 batches of SIZES[0], each in its own stream."""
    probe.require_gpu()
    captured = [synthesize.opened(probe.accelerator, SIZES[0])[0].step for _ in range(max(AT_ONCE))]
    streams = [torch.cuda.Stream() for _ in captured]

    def together(count: int) -> Call:
        def call() -> None:
            current = torch.cuda.current_stream()
            for stream, step in zip(streams[:count], captured, strict=False):
                stream.wait_stream(current)
                with torch.cuda.stream(stream):
                    for _ in range(STEPS):
                        step()
            for stream in streams[:count]:
                current.wait_stream(stream)

        return call

    return {f"{count} x {SIZES[0]}, ms": probe.ms(together(count), 10) / STEPS for count in AT_ONCE}


def distillation(probe: Probe) -> Mapping[str, object]:
    """Return the milliseconds and the launches of a step."""
    step = distill.opened(probe.accelerator, _distilled(probe))
    return {"ms": probe.ms(step), "launches": probe.launches(step, "distillation")}


def distillation_as_a_graph(probe: Probe) -> Mapping[str, object]:
    """Return the milliseconds of a step without reseeding, eager and as a graph.

    A graph cannot contain the reseeding around the student; these networks use no random numbers.
    """
    step = distill.opened(probe.accelerator, _distilled(probe))
    with patch("engine.stages.distill.seeded", lambda *_: nullcontext()):
        return {"without seeds, ms": probe.ms(step), "graph, ms": probe.ms(probe.as_graph(step))}


def _distilled(probe: Probe) -> int:
    return distill.BATCHES["WRN-40-2"] if probe.on_gpu else 4


def waits(probe: Probe) -> Mapping[str, object]:
    """Return the source lines of each step at which the host waits for the GPU."""
    probe.require_gpu()
    steps = {
        "synthesis": synthesize.opened(probe.accelerator)[0].step,
        "distillation": distill.opened(probe.accelerator),
    }
    found = {}
    for name, step in steps.items():
        step()
        with _recorded_waits() as recorded:
            step()
        found[name] = sorted({f"{wait.filename[-40:]}:{wait.lineno}" for wait in recorded}) or "none"
    return found


@contextmanager
def _recorded_waits() -> Iterator[list[warnings.WarningMessage]]:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always")
            yield recorded
    finally:
        torch.cuda.set_sync_debug_mode("default")
