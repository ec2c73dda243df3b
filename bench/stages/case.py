"""A case of the bench: the same work as published and by our code."""

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
    """What ours runs on: an accelerator for training, options for the frozen networks."""

    accelerator: Accelerator
    options: RuntimeOptions


@dataclass(frozen=True, kw_only=True)
class Work:
    """A call, the steps or images (or share of an image) it does, and the runtime if there is a choice."""

    call: Call
    amount: float
    runtime: str = ""


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Our work by case name; each case does the same as every baseline."""

    work: Mapping[str, Work]
    flops: float
    """Floating-point operations per step or image."""
    dtype: str
    shape: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """Published work by baseline name, and `open`, which opens ours after the baselines were measured alone.

    `open` raises DifferentWorkError if ours does not compute what the published code computes.
    """

    published: Mapping[str, Work]
    open: Callable[[Machine], Ours]
    unit: Literal["ms", "img/s"]
    """ms per step, or images per second."""


def flops(call: Call) -> float:
    """Count the floating-point operations of matrix products and convolutions in a torch call.

    Fused attention, which the counter does not support on a CPU, is decomposed for the count.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops()
