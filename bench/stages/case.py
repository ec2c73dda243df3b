"""What is measured: a piece of work as published, and as ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.timing import Call
from engine.runtime.base import RuntimeOptions


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What ours runs on: the accelerator of the stages that train, the options of the runtime."""

    accelerator: Accelerator
    options: RuntimeOptions


@dataclass(frozen=True, kw_only=True)
class Work:
    """A call, how many steps or images it does, and what runtime runs it where that is a choice."""

    call: Call
    amount: int
    runtime: str = ""


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Ours by the case's name in the rows; each does what every baseline does."""

    work: Mapping[str, Work]
    flops: float
    """Floating-point operations of one step, or one image."""
    dtype: str
    shape: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """`published` by the baseline's name; ours is opened only when these were measured alone.

    `open` raises DifferentWorkError where ours does not compute what the published code computes.
    """

    published: Mapping[str, Work]
    open: Callable[[Machine], Ours]
    unit: Literal["ms", "img/s"]
    """Of one step, or of images."""


def flops(call: Call) -> float:
    """Floating-point operations of the matrix products and convolutions of a call on torch.

    Attention in one kernel, which the counter does not know on a CPU, is taken apart for the count.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops()
