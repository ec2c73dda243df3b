"""Check the parity of a runtime with torch in float32."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from export.float32 import exact_float32
from export.spec import NetworkSpec, Precision

TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
"""Largest relative error. Above it, the graph is wrong or the precision is too low for the network."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The worst values over a network's outputs. Error and cosine are NaN unless all outputs are finite."""

    finite: bool
    relative_error: float
    """||given - wanted|| / ||wanted||; infinite if only `wanted` is zero."""
    cosine: float
    """Lowest cosine similarity between the given and the wanted output of a sample."""
    precision: Precision

    @property
    def passes(self) -> bool:
        return self.finite and self.relative_error <= TOLERANCE[self.precision]

    def __str__(self) -> str:
        if not self.finite:
            return "numbers that are not finite"
        return f"relative error {self.relative_error:.1e} (at most {TOLERANCE[self.precision]:.0e})"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Parity":
        """Rebuild a `Parity` from the values of `as_json`."""
        null = math.inf if values["finite"] else math.nan
        numbers = {
            name: null if values[name] is None else values[name] for name in ("relative_error", "cosine")
        }
        return cls(finite=values["finite"], precision=values["precision"], **numbers)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, with None (null) for NaN and Inf, which JSON cannot represent."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        } | {"passes": self.passes}


@torch.no_grad()
def reference(spec: NetworkSpec, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the module's own outputs in exact float32; `inputs` must be on its device."""
    with exact_float32():
        return spec.named(spec.module(*(inputs[given.name] for given in spec.inputs)))


def compare(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], precision: Precision) -> Parity:
    """Compare `given` with `wanted`, both [B, ...] by output name; `finite` requires both to be finite."""
    pairs = [(given[name].double().cpu(), wanted[name].double().cpu()) for name in wanted]
    assert all(a.shape == b.shape for a, b in pairs), [(a.shape, b.shape) for a, b in pairs]
    finite = all(bool(a.isfinite().all() and b.isfinite().all()) for a, b in pairs)
    if not finite:
        return Parity(finite=False, relative_error=math.nan, cosine=math.nan, precision=precision)
    return Parity(
        finite=True,
        relative_error=max(_relative_error(a, b) for a, b in pairs),
        cosine=min(_cosine(a, b) for a, b in pairs),
        precision=precision,
    )


def _relative_error(given: Tensor, wanted: Tensor) -> float:
    difference, norm = (given - wanted).norm().item(), wanted.norm().item()
    return difference / norm if norm else (0.0 if not difference else math.inf)


def _cosine(given: Tensor, wanted: Tensor) -> float:
    return torch.cosine_similarity(given.flatten(1), wanted.flatten(1)).min().item()
