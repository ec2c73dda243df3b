"""What must be known of a network to export it: the module, its inputs and outputs, its shapes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["fp16", "bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
"""From the least to the safest."""
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

Point = Literal["min", "opt", "max"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A size that varies between calls: from `min` to `max`, tuned for `opt`, each a multiple of `multiple`.

    Axes of one name are equal in a call.
    """

    name: str
    min: int
    opt: int
    max: int
    multiple: int = 1

    def __post_init__(self) -> None:
        assert 0 < self.min <= self.opt <= self.max, self
        assert not any(size % self.multiple for size in (self.min, self.opt, self.max)), self


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input, float32 at the door whatever the precision inside."""

    name: str
    shape: tuple[int | Axis, ...]
    values: Literal["uniform", "normal"] | float = "normal"
    """What example inputs are drawn from: [0, 1), the standard normal, or one constant."""

    def shape_at(self, point: Point) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else getattr(size, point) for size in self.shape)


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network to be run by any runtime.

    `module`: in eval mode; takes the inputs in their order and returns a tuple of float32 tensors, in the
    order of `outputs`. The first axis of every output, and of every input whose first axis is named `batch`,
    is the batch.
    """

    name: str
    module: nn.Module
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]

    def axes(self) -> dict[str, Axis]:
        """The varying sizes by name."""
        return {axis.name: axis for given in self.inputs for axis in given.shape if isinstance(axis, Axis)}

    def shapes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """(min, opt, max) of each input, by name."""
        return {
            given.name: (given.shape_at("min"), given.shape_at("opt"), given.shape_at("max"))
            for given in self.inputs
        }

    def example(self, sizes: dict[str, int] | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """Random float32 inputs on the CPU; axes have their tuned size where `sizes` names no other."""
        draw = torch.Generator().manual_seed(seed)
        return {given.name: _draw(given, sizes or {}, draw) for given in self.inputs}

    def named(self, outputs: Iterable[Tensor]) -> dict[str, Tensor]:
        """The module's outputs by name."""
        return dict(zip(self.outputs, outputs, strict=True))


def _draw(given: Input, sizes: dict[str, int], generator: torch.Generator) -> Tensor:
    shape = [size if isinstance(size, int) else sizes.get(size.name, size.opt) for size in given.shape]
    if given.values == "uniform":
        return torch.rand(shape, generator=generator)
    if given.values == "normal":
        return torch.randn(shape, generator=generator)
    assert math.isfinite(given.values)
    return torch.full(shape, float(given.values))
