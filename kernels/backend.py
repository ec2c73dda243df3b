"""Which implementation of an op runs: C++ on the CPU, Triton on a GPU, plain torch where neither can."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["cpp", "triton", "torch"]

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as csrc/dtype.hpp numbers them

_override: Backend | None = None


def backend_for(x: Tensor) -> Backend:
    """The implementation for `x` [any shape]: plain torch for other dtypes and empty tensors; else the
    override where one is set; else by device."""
    if x.dtype not in DTYPES or x.numel() == 0:
        return "torch"
    if _override is not None:
        return _override
    if x.device.type == "cpu":
        return "cpp"
    return "triton" if x.device.type == "cuda" and _has_triton() else "torch"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def set_backend(backend: Backend | None) -> None:
    """Every op of the process runs on `backend` from now on; None: each on the best for its device."""
    global _override
    _override = backend


@contextmanager
def use_backend(backend: Backend | None) -> Iterator[None]:
    """`set_backend` for the length of a block; not per thread, as backward passes run in others."""
    before = _override
    set_backend(backend)
    try:
        yield
    finally:
        set_backend(before)
