"""What a check is given: the device, and how to time and count on it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from bench.calls import replayed
from bench.timing import Call

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")


class NeedsGpuError(Exception):
    """Raised by a check that has nothing to do on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """On a CPU the checks take small sizes, to rehearse."""

    accelerator: Accelerator
    out: Path
    """The folder for what is too long for a line."""

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def require_gpu(self) -> None:
        if not self.on_gpu:
            raise NeedsGpuError

    def ms(self, call: Call, repeats: int = 30) -> float:
        """Return the mean time of `call`, back to back after two runs to warm up; on a CPU, of one run."""
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        call()
        call()
        torch.cuda.synchronize()
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        for _ in range(repeats):
            call()
        end_event.record()
        torch.cuda.synchronize()
        return start_event.elapsed_time(end_event) / repeats

    def as_graph(self, call: Call) -> Call:
        """Return `call` as a CUDA graph; on a CPU as it is."""
        return replayed(call) if self.on_gpu else call

    def launches(self, call: Call, name: str) -> int:
        """Return how often one `call` launches something; the profile goes to NAME.prof."""
        with torch.profiler.profile() as profile:
            call()
            if self.on_gpu:
                torch.cuda.synchronize()
        order = "self_device_time_total" if self.on_gpu else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=order, row_limit=45)
        (self.out / f"{name}.prof").write_text(table, encoding="utf-8")
        return sum(event.name.startswith(LAUNCHES) for event in profile.events())


Check = Callable[[Probe], Mapping[str, object]]
"""Gives its figures by name; raises what it finds broken."""
