"""The student's optimizer: SGD, with orthogonalized updates for the hidden weights if asked."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.config.distill import DistillConfig

_COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic Newton-Schulz iteration: its slope at 0 is as large as possible."""
_ITERATIONS = 3
_EPS = 1e-7


class StudentSgd(torch.optim.SGD):
    """SGD; groups with `orthogonal` take Muon's updates (Jordan et al., 2024) at their own learning rate.

    Muon replaces the momentum of a weight, as a matrix [rows, columns], by the closest matrix with orthogonal
    rows or columns, roughly. Before each of these updates the weight is scaled to the norm √rows: the layer is
    followed by a normalization, so that its scale decides nothing but how far an update turns it.
    """

    def __init__(self, groups: list[dict[str, Any]], config: DistillConfig) -> None:
        super().__init__(
            groups,
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            if group.get("orthogonal"):
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._orthogonalize(weight, group["muon_momentum"])
        return super().step(closure)

    def _orthogonalize(self, weight: Tensor, momentum: float) -> None:
        """Replace the gradient of a weight by Muon's update, and scale the weight."""
        state = self.state[weight]
        mean = state.setdefault("muon_momentum", torch.zeros_like(weight.grad))
        mean.mul_(momentum).add_(weight.grad)
        weight.grad.add_(mean, alpha=momentum)
        weight.grad.copy_(orthogonalized(weight.grad.flatten(1)).view_as(weight))
        weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=_EPS))
