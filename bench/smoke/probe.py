"""The probe that every check receives: the device, with methods to time calls and count launches."""

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
    """Raised by a check that needs a GPU."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The device of a check. On a CPU, checks use small sizes, as a rehearsal."""

    accelerator: Accelerator
    out: Path
    """The folder for profiles and traces."""

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
        """Return the mean ms of back-to-back calls after two warm-up runs; on a CPU, of a single call."""
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
        """Return `call` as a CUDA graph; on a CPU, `call` itself."""
        return replayed(call) if self.on_gpu else call

    def launches(self, call: Call, name: str) -> int:
        """Return how many launches one `call` makes; write its profile to NAME.prof."""
        with torch.profiler.profile() as profile:
            call()
            if self.on_gpu:
                torch.cuda.synchronize()
        order = "self_device_time_total" if self.on_gpu else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=order, row_limit=45)
        (self.out / f"{name}.prof").write_text(table, encoding="utf-8")
        return sum(event.name.startswith(LAUNCHES) for event in profile.events())


Check = Callable[[Probe], Mapping[str, object]]
"""Returns figures by name; raises an exception if something is broken."""
