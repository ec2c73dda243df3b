"""The student's optimizer: SGD, with orthogonalized updates for the hidden weights if asked."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.config.distill import DistillConfig

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic Newton-Schulz iteration of Jordan et al.; the slope at 0 is as large as possible."""
ITERATIONS = 3
MOMENTUM = 0.6
"""Momentum of the orthogonalized updates; each turns the weights far, so that little averaging is best."""
EPS = 1e-7


class StudentSgd(torch.optim.SGD):
    """SGD; the hidden weights can take Muon's updates instead, at a learning rate of their own.

    Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a weight, as a
    matrix of one row per output channel, by a matrix whose singular values are all near 1: a step as large in
    weak directions as in strong ones. Before its update a weight is scaled to the norm √rows, as in the same
    author's airbench, so that the learning rate alone decides how far a step turns it.
    """

    def __init__(self, module: nn.Module, student: nn.Module, config: DistillConfig) -> None:
        """Optimize the parameters of `module`, which contains the student."""
        self._hidden = hidden_weights(student) if config.optimizer == "muon" else []
        taken = {id(weight) for weight in self._hidden}
        groups: list[dict[str, Any]] = [{"params": [p for p in module.parameters() if id(p) not in taken]}]
        if self._hidden:
            groups.append({"params": self._hidden, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0})
        self._peaks = config.lr, config.muon_lr
        super().__init__(
            groups,
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )

    def set_rate(self, share: float) -> None:
        """Set the learning rate of each group to `share` of its peak."""
        for group, peak in zip(self.param_groups, self._peaks, strict=False):
            group["lr"] = share * peak

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for weight in self._hidden:
            if weight.grad is not None:
                self._prepare(weight)
        return super().step(closure)

    def _prepare(self, weight: Tensor) -> None:
        """Scale the weight, and replace its gradient by Muon's update."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["mean"] = torch.zeros_like(gradient)
        state["mean"].mul_(MOMENTUM).add_(gradient)
        gradient.add_(state["mean"], alpha=MOMENTUM)  # Nesterov
        gradient.copy_(orthogonalized(gradient.flatten(1)).view_as(weight))
        weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=EPS))


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return U S Vᵀ for a matrix [N, M] with singular vectors U and V; the singular values S are near 1.

    They come from a few Newton-Schulz iterations, and lie between 0.5 and 1.5 unless the matrix is nearly
    singular. Computed in bf16 on a GPU and in float32 elsewhere.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = wide.mT if len(wide) > wide.shape[1] else wide
    x = x / x.norm().clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if len(wide) > wide.shape[1] else x).to(matrix.dtype)


def hidden_weights(student: nn.Module) -> list[nn.Parameter]:
    """Return the weights of the convolutions and linear layers between the first and the last one.

    Layers with one output for each class are left out: they are heads, wherever they stand. So are
    convolutions with groups: their rows see different channels, so they are not one matrix.
    """
    layers = [layer for layer in student.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    outer = {id(layer.weight) for layer in (*layers[:1], *layers[-1:])}
    classes = getattr(student, "num_classes", None)
    found: dict[int, nn.Parameter] = {}
    for layer in layers:
        is_head = isinstance(layer, nn.Linear) and layer.out_features == classes
        is_matrix = isinstance(layer, nn.Linear) or layer.groups == 1
        if is_matrix and not is_head and id(layer.weight) not in outer and layer.weight.requires_grad:
            found[id(layer.weight)] = layer.weight  # type: ignore[assignment]
    return list(found.values())
