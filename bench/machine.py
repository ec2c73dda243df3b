"""What the machine can do at best, and what it is called."""

import platform
from functools import cache
from pathlib import Path

import torch

from bench.timing import milliseconds


def describe(device: torch.device) -> str:
    """The device's name; for a CPU with the number of threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


@cache
def copy_bytes_per_second(device: torch.device) -> float:
    """Bytes read and written each second by a copy of a tensor far larger than the caches."""
    source = torch.ones(64 << 20 if device.type == "cpu" else 512 << 20, device=device)
    target = torch.empty_like(source)
    ms = milliseconds({"copy": lambda: target.copy_(source)}, device)["copy"]
    return 2 * source.nbytes / ms * 1e3


@cache
def gemm_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    ms = milliseconds({"gemm": lambda: a @ b}, device)["gemm"]
    return 2 * size**3 / ms * 1e3
