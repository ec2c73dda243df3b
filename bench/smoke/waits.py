"""Lines of our steps at which the host waits for the GPU."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from bench.smoke.probe import Probe
from bench.stages import distill, synthesize


def of_the_host(probe: Probe) -> Mapping[str, object]:
    probe.require_gpu()
    steps = {
        "synthesis": synthesize.opened(probe.accelerator)[0].step,
        "distillation": distill.opened(probe.accelerator),
    }
    found = {}
    for name, step in steps.items():
        step()
        with _told() as waits:
            step()
        found[name] = sorted({f"{wait.filename[-40:]}:{wait.lineno}" for wait in waits}) or "none"
    return found


@contextmanager
def _told() -> Iterator[list[warnings.WarningMessage]]:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            yield waits
    finally:
        torch.cuda.set_sync_debug_mode("default")
