"""The name of a device, and the peak speed that the machine reaches."""

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from bench.timing import Call


def describe(device: torch.device) -> str:
    """Return the device's name; for a CPU, also the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@dataclass(frozen=True)
class Ceiling:
    """A call that runs at peak speed: it moves `amount` bytes, or does `amount` operations."""

    call: Call
    amount: float

    def ms(self, amount: float, measured_ms: float) -> float:
        """Return the milliseconds for `amount` at the speed of a call that took `measured_ms`."""
        return amount / self.amount * measured_ms


@cache
def copy_ceiling(device: torch.device) -> Ceiling:
    """Return the copy of a tensor far larger than the caches; its amount is the bytes read and written."""
    source = torch.ones(64 << 20 if device.type == "cpu" else 512 << 20, device=device)
    target = torch.empty_like(source)
    return Ceiling(lambda: target.copy_(source), 2 * source.nbytes)


@cache
def gemm_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """Return a square matrix product; its amount is the floating-point operations."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return Ceiling(lambda: a @ b, 2 * size**3)
