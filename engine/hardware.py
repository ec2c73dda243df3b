"""Detect this machine's cores, who else uses them, and the precision and runtime that suit it."""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from engine.config.compute import ComputeConfig, Runtime

logger = logging.getLogger(__name__)

BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}
PROC = Path("/proc")
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
    """Torch's threads on cores that other processes may use as well.

    An OpenMP team, and the threads of oneDNN's convolutions, spin while they wait for the slowest of them. If
    one waits for a core, all do: next to a busy process, two threads on two cores are slower than one.
    Does nothing with one thread, nor without Linux's /proc/stat.
    """

    def __init__(self, compute: ComputeConfig) -> None:
        """Begin to measure if `compute`, a resolved configuration, lets other processes have cores."""
        assert compute.threads is not None
        self._all = self._left = compute.threads
        shares = compute.share_cores and compute.device == "cpu" and compute.threads > 1
        self._last = CoreTimes.now() if shares else None
        self._has_told = False

    def adjust(self) -> None:
        """Set torch's threads in the calling thread to the cores that others leave; call it between steps."""
        if self._last is None:
            return
        import torch

        if time.monotonic() > self._last.at + MEASURED_SECONDS:
            self._measure(self._last)
        if torch.get_num_threads() != self._left:
            torch.set_num_threads(self._left)

    def _measure(self, last: "CoreTimes") -> None:
        now = CoreTimes.now()
        others = 0.0 if now is None else now.others_since(last)
        self._last = now
        cores = available_cores()
        self._left = min(self._all, max(1, round(cores - others)))
        if self._left < self._all and not self._has_told:
            self._has_told = True
            logger.warning(
                f"other processes keep {others:.1f} of {cores} cores busy; until they end, torch runs fewer "
                f"threads than {self._all} (compute.share_cores=false keeps all)"
            )


@dataclass(frozen=True, kw_only=True)
class CoreTimes:
    """CPU seconds so far, on the cores that this process may use."""

    at: float
    """`time.monotonic` of the reading."""
    everyone: float
    """Seconds of all processes, and seconds that a hypervisor gave to other machines."""
    own: float
    """Seconds of this process and its descendants."""

    @classmethod
    def now(cls) -> "CoreTimes | None":
        """Read the times, or return None if this system does not have them."""
        try:
            stat = (PROC / "stat").read_text()
            cores = os.sched_getaffinity(0)
        except (OSError, AttributeError):
            return None
        ticks = sum(_busy_ticks(line) for line in stat.splitlines() if _core_of(line) in cores)
        return cls(at=time.monotonic(), everyone=ticks / os.sysconf("SC_CLK_TCK"), own=_own_seconds())

    def others_since(self, before: "CoreTimes") -> float:
        """Return how many cores other processes kept busy since `before`."""
        used = (self.everyone - before.everyone) - (self.own - before.own)
        return max(0.0, used / (self.at - before.at))


def _core_of(line: str) -> int | None:
    """Return the core that a line of /proc/stat is about, if it is about one."""
    name = line.split(" ", 1)[0].removeprefix("cpu")
    return int(name) if line.startswith("cpu") and name else None


def _busy_ticks(line: str) -> int:
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
    return user + nice + system + irq + softirq + steal


def _own_seconds() -> float:
    times = os.times()
    ended = times.children_user + times.children_system
    return time.process_time() + ended + sum(map(_seconds, _descendants(os.getpid())))


def _descendants(process: int) -> Iterator[int]:
    try:
        tasks = list((PROC / str(process) / "task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended, or the kernel does not list children
        return
    for child in children:
        yield child
        yield from _descendants(child)


def _seconds(process: int) -> float:
    """Return the CPU seconds of a process and of its children that have ended."""
    try:
        fields = (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
