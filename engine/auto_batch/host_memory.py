"""Keeps a search from taking the host's memory, which ends with the process killed, not with an error."""

import ctypes
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SHARE = 0.5
"""Of the memory that is free, what the next size may need."""
CGROUP = Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int:
    """What the system can give without swapping, within the limit of a container (cgroup v2)."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and (most := limit.read_text(encoding="utf-8").strip()) != "max":
        free = min(free, int(most) - int(used.read_text(encoding="utf-8")))
    return free


class HostMemory:
    """`fits(now, next)`: whether `next` images at once will fit after `now` at once have run.

    Goes by the peak of the process since this object was made, which grows in proportion to `now` at most.
    """

    def __init__(self, available: Callable[[], int] = available_bytes) -> None:
        self._available = available
        with suppress(AttributeError):  # glibc alone keeps freed memory mapped, which would hide growth
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):  # where it is not allowed an earlier peak counts: the search ends sooner
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self._start = _resident_bytes()

    def fits(self, now: int, next: int) -> bool:
        needed = (_peak_bytes() - self._start) * next / now
        already = _resident_bytes() - self._start
        return needed - already <= SHARE * self._available()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
