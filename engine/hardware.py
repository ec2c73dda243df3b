"""Detect this machine's cores, who else uses them, and the precision and runtime that suit it."""

import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, Self

from engine.config.compute import ComputeConfig, Runtime

if TYPE_CHECKING:
    import psutil

logger = logging.getLogger(__name__)

BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}
MEASURED_SECONDS = 2.0
"""Time over which the use of the cores is measured."""


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def native_precision(device: str) -> Literal["fp32", "bf16"]:
    """Return bf16 if the hardware computes matrix products in it, else fp32."""
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    import kernels

    return "bf16" if BF16_INSTRUCTIONS.intersection(kernels.cpu_features()) else "fp32"


def native_runtime(device: str, compiled: bool) -> Runtime:
    """Return openvino on a CPU if it is installed and inductor does not compile, else torch."""
    return "openvino" if device == "cpu" and not compiled and find_spec("openvino") else "torch"


class SharedCores:
    """Torch's threads on cores that other processes may use as well: a context that restores them at its end.

    An OpenMP team, and the threads of oneDNN's convolutions, spin while they wait for the slowest of them. If
    one waits for a core, all do: next to a busy process, two threads on two cores are slower than one.

    Does nothing on a GPU, with one thread, with several ranks, whose rounding must be the same, with
    inductor, which compiles for a number of threads, and on another system than Linux.
    """

    def __init__(self, compute: ComputeConfig, *, ranks: int = 1) -> None:
        """Begin to measure if `compute`, a resolved configuration, lets other processes have cores."""
        assert compute.threads is not None
        self._all = self._left = compute.threads
        adapts = compute.share_cores and compute.device == "cpu" and not compute.compile
        self._last = CoreTimes.now() if adapts and compute.threads > 1 and ranks == 1 else None
        self._has_told = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._left = self._all
        self._set_threads()

    def adjust(self) -> None:
        """Set torch's threads in the calling thread to the cores that others leave; call it between steps."""
        if self._last is None:
            return
        if time.monotonic() > self._last.at + MEASURED_SECONDS:
            self._measure(self._last)
        self._set_threads()

    def _set_threads(self) -> None:
        import torch

        if torch.get_num_threads() != self._left:
            torch.set_num_threads(self._left)

    def _measure(self, last: "CoreTimes") -> None:
        self._last = now = CoreTimes.now()
        others, cores = (0.0, 0) if now is None else (now.others_since(last), len(now.busy))
        self._left = threads_left(others, cores=cores, wanted=self._all)
        if self._left < self._all and not self._has_told:
            self._has_told = True
            logger.warning(
                f"other processes keep {others:.1f} of {cores} cores busy; until they end, torch runs fewer "
                f"threads than {self._all} (compute.share_cores=false keeps all)"
            )


def threads_left(others: float, *, cores: int, wanted: int) -> int:
    """Return how many of the `wanted` threads to run while other processes keep `others` cores busy.

    At least half of the cores stay in use, so that of two runs neither starves the other.
    """
    if others < 0.5:
        return wanted
    return min(wanted, max(1, cores // 2, round(cores - others)))


@dataclass(frozen=True, kw_only=True)
class CoreTimes:
    """CPU seconds so far."""

    at: float
    """`time.monotonic` of the reading."""
    busy: dict[int, float]
    """Seconds of all processes, and seconds that a hypervisor gave to other machines, by the cores that this
    process may use. Processes of a higher nice value than this one's give way to it, and do not count."""
    own: float
    """Seconds of this process and its descendants."""

    @classmethod
    def now(cls) -> "CoreTimes | None":
        """Read the times, or return None on another system than Linux."""
        import psutil

        if not psutil.LINUX:
            return None
        process = psutil.Process()
        cores = _cores_of(thread.id for thread in process.threads())
        busy = {core: seconds for core, seconds in enumerate(_busy_seconds()) if core in cores}
        own = sum(map(_seconds, [process, *process.children(recursive=True)]))
        return cls(at=time.monotonic(), busy=busy, own=own)

    def others_since(self, before: "CoreTimes") -> float:
        """Return how many cores other processes kept busy since `before`.

        Seconds of a descendant that ended without being waited for are missing now; then the result is 0.
        """
        cores = self.busy.keys() & before.busy.keys()
        own = self.own - before.own
        if own < 0:
            return 0.0
        used = sum(self.busy[core] - before.busy[core] for core in cores) - own
        return min(max(0.0, used / (self.at - before.at)), len(cores))


def _busy_seconds() -> list[float]:
    """Return the busy seconds of each core of this machine."""
    import psutil

    gives_way = os.getpriority(os.PRIO_PROCESS, 0) > 0
    return [
        core.user + core.system + core.irq + core.softirq + core.steal + (core.nice if gives_way else 0.0)
        for core in psutil.cpu_times(percpu=True)
    ]


def _cores_of(threads: Iterable[int]) -> set[int]:
    """Return the cores that any of the threads may use; OMP_PROC_BIND binds each to its own."""
    cores: set[int] = set()
    for thread in threads:
        with suppress(ProcessLookupError):  # it has ended
            cores |= os.sched_getaffinity(thread)
    return cores


def _seconds(process: "psutil.Process") -> float:
    """Return the CPU seconds of a process and of its children that have ended; 0 if it has ended itself."""
    import psutil

    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system
