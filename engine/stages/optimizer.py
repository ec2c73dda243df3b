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
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for weight in self._hidden:
            if weight.grad is not None:
                alike.setdefault((len(weight), weight[0].numel()), []).append((weight, weight.grad))
        for pairs in alike.values():
            self._prepare([weight for weight, _ in pairs], [gradient for _, gradient in pairs])
        return super().step(closure)

    def _prepare(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Scale weights that are matrices of one shape, and replace their gradients by Muon's updates."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["mean"] = torch.zeros_like(weight)
        means = [self.state[weight]["mean"] for weight in weights]
        torch._foreach_mul_(means, MOMENTUM)
        torch._foreach_add_(means, gradients)
        torch._foreach_add_(gradients, means, alpha=MOMENTUM)  # Nesterov
        updates = orthogonalized(torch.stack([gradient.flatten(1) for gradient in gradients]))
        for gradient, update in zip(gradients, updates, strict=True):
            gradient.copy_(update.view_as(gradient))
        for weight in weights:
            weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=EPS))


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return U S Vᵀ for each matrix [B, N, M] with singular vectors U and V; the values S are near 1.

    They come from a few Newton-Schulz iterations, and lie between 0.5 and 1.5 unless the matrix is nearly
    singular. Computed in bf16 on a GPU and in float32 elsewhere.
    """
    a, b, c = COEFFICIENTS
    wide = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    is_tall = wide.shape[1] > wide.shape[2]
    x = wide.mT if is_tall else wide
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


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
