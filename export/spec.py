"""Describe a network for export: the module, its inputs and outputs, and the shapes they may have."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from export.errors import ExportError

Precision = Literal["fp16", "bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
"""In ascending order of precision."""
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

Point = Literal["min", "opt", "max"]

BATCHES = (1, 16, 64)
"""Default (min, opt, max) of a batch axis."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A size that may vary between calls, from `min` to `max`; engines are tuned for `opt`.

    All three are multiples of `multiple`. Axes with the same name have the same size within a call.
    """

    name: str
    min: int
    opt: int
    max: int
    multiple: int = 1

    def __post_init__(self) -> None:
        assert 0 < self.min <= self.opt <= self.max, self
        assert not any(size % self.multiple for size in (self.min, self.opt, self.max)), self


def batch(sizes: tuple[int, int, int] = BATCHES) -> Axis:
    """Return the batch axis with (min, opt, max)."""
    return Axis(name="batch", min=sizes[0], opt=sizes[1], max=sizes[2])


def resolution(name: str, native: int, *, multiple: int = 1) -> Axis:
    """Return a height or width axis from 0.5 to 1.5 times the training size `native`, in steps of `multiple`.

    Raises ExportError if `native` is not a multiple of `multiple`.
    """
    if native % multiple:
        raise ExportError(
            f"{name} is {native}, but the network needs a multiple of {multiple}; load a matching network"
        )
    half = max(native // 2 // multiple, 1) * multiple
    return Axis(
        name=name, min=half, opt=native, max=native + native // 2 // multiple * multiple, multiple=multiple
    )


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a network, always float32, whatever the precision of the network."""

    name: str
    shape: tuple[int | Axis, ...]
    values: Literal["uniform", "normal"] | float = "normal"
    """Distribution of example inputs: uniform in [0, 1), standard normal, or one constant."""

    def shape_at(self, point: Point) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else getattr(size, point) for size in self.shape)


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network that any runtime can run.

    `module` is in eval mode, takes the inputs in order and returns a tuple of float32 tensors in the order of
    `outputs`. The batch is the first axis of every output, and of every input whose first axis is named
    `batch`.
    """

    name: str
    module: nn.Module
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]

    def axes(self) -> dict[str, Axis]:
        """Return the axes of all inputs by name."""
        return {axis.name: axis for given in self.inputs for axis in given.shape if isinstance(axis, Axis)}

    def shapes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """Return (min, opt, max) shapes of each input, by name."""
        return {
            given.name: (given.shape_at("min"), given.shape_at("opt"), given.shape_at("max"))
            for given in self.inputs
        }

    def example(self, sizes: dict[str, int] | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """Return random float32 inputs on the CPU; an axis that `sizes` does not name has its size `opt`."""
        generator = torch.Generator().manual_seed(seed)
        return {given.name: _sample(given, sizes or {}, generator) for given in self.inputs}

    def named(self, outputs: Iterable[Tensor]) -> dict[str, Tensor]:
        """Return the module's outputs by name."""
        return dict(zip(self.outputs, outputs, strict=True))


def _sample(given: Input, sizes: dict[str, int], generator: torch.Generator) -> Tensor:
    shape = [size if isinstance(size, int) else sizes.get(size.name, size.opt) for size in given.shape]
    if given.values == "uniform":
        return torch.rand(shape, generator=generator)
    if given.values == "normal":
        return torch.randn(shape, generator=generator)
    assert math.isfinite(given.values)
    return torch.full(shape, float(given.values))
