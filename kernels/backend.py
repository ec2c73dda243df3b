"""Choose the implementation of an op: C++ on a CPU, Triton on a GPU, plain torch if neither applies."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["cpp", "triton", "torch"]

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The numbers that csrc/dtype.hpp assigns to the floating-point dtypes."""

_override: Backend | None = None


def backend_for(x: Tensor, dtypes: Collection[torch.dtype] = DTYPES) -> Backend:
    """Return the backend for `x` [any shape] of an op whose kernels take `dtypes`.

    Other dtypes and empty tensors run on plain torch. Otherwise the override decides, if one is set, and
    then the device.
    """
    if x.dtype not in dtypes or x.numel() == 0:
        return "torch"
    if _override is not None:
        return _override
    if x.device.type == "cpu":
        return "cpp"
    return "triton" if x.device.type == "cuda" and _has_triton() else "torch"


def implementation(op: str, backend: Backend) -> ModuleType:
    """Import the module of the package `op` that implements `backend`: cpp, triton or reference."""
    return import_module(f"{op}.{'reference' if backend == 'torch' else backend}")


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def set_backend(backend: Backend | None) -> None:
    """Run every op of the process on `backend`; None restores the best one for each device."""
    global _override
    _override = backend


@contextmanager
def use_backend(backend: Backend | None) -> Iterator[None]:
    """Run every op of the process on `backend` inside the block.

    The setting is not per thread, because backward passes run in other threads.
    """
    before = _override
    set_backend(backend)
    try:
        yield
    finally:
        set_backend(before)
