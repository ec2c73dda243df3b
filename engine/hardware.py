"""Detect this machine's cores, and the precision and runtime that suit it."""

import os
from importlib.util import find_spec
from typing import Literal

from engine.config.compute import Runtime

BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}


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
