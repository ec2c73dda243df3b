"""Plain torch: the ground truth for the kernels, and the implementation for all other tensors."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["none", "relu", "relu6", "leaky_relu", "silu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


class BatchNorm(NamedTuple):
    """An eval-mode BatchNorm and the activation that follows it."""

    weight: Tensor | None
    """[C]; None means 1"""
    bias: Tensor | None
    """[C]; None means 0"""
    running_mean: Tensor
    """[C]"""
    running_var: Tensor
    """[C]"""
    eps: float
    activation: Activation
    negative_slope: float
    """Slope of leaky_relu below 0"""

    def converted(self, convert: Callable[[Tensor], Tensor]) -> "BatchNorm":
        """Return a copy with `convert` applied to every parameter."""
        weight, bias = (None if p is None else convert(p) for p in (self.weight, self.bias))
        mean, var = convert(self.running_mean), convert(self.running_var)
        return self._replace(weight=weight, bias=bias, running_mean=mean, running_var=var)


def bn_stats_reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    eps: float = 1e-5,
    activation: Activation = "none",
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Return y [B, C, H, W] and the statistics loss of `bn_stats`, differentiable by autograd.

    Computes in float32, or in float64 if x is float64, and rounds y to x's dtype once.
    """
    wide = x.to(_wide(x))
    weight, bias = (None if p is None else p.to(wide.dtype) for p in (weight, bias))
    running_mean, running_var = running_mean.to(wide.dtype), running_var.to(wide.dtype)
    normalized = F.batch_norm(wide, running_mean, running_var, weight, bias, eps=eps)
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    loss = torch.linalg.vector_norm(var - running_var) + torch.linalg.vector_norm(mean - running_mean)
    return _activate(normalized, activation, negative_slope).to(x.dtype), loss


def forward(x: Tensor, norm: BatchNorm, statistics: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the loss, and the coefficients [2, C] of d loss / d x = a + b · x.

    Without `statistics`, the loss and the coefficients are 0.
    """
    wide = x.to(_wide(x))
    scale, shift = _per_channel(norm, wide.dtype)
    y = _activate(wide * scale + shift, norm.activation, norm.negative_slope).to(x.dtype)
    if not statistics:
        return y, wide.new_zeros(()), wide.new_zeros(2, x.shape[1])
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    d_mean, d_var = mean - norm.running_mean.to(wide.dtype), var - norm.running_var.to(wide.dtype)
    mean_norm, var_norm = torch.linalg.vector_norm(d_mean), torch.linalg.vector_norm(d_var)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    b = torch.where(var_norm > 0, 2 * d_var / (count * var_norm), 0)
    a = torch.where(mean_norm > 0, d_mean / (count * mean_norm), 0) - b * mean
    return y, mean_norm + var_norm, torch.stack([a, b])


def backward(
    grad_y: Tensor, grad_loss: Tensor | None, x: Tensor, norm: BatchNorm, coefficients: Tensor, affine: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return grad_x and, with `affine`, the gradients of weight and bias [C]; else two empty tensors.

    If `grad_loss` is None, the loss adds nothing to grad_x.
    """
    wide = x.to(_wide(x))
    scale, shift = _per_channel(norm, wide.dtype)
    with torch.enable_grad():
        z = (wide * scale + shift).detach().requires_grad_()
        y = _activate(z, norm.activation, norm.negative_slope)
        (u,) = torch.autograd.grad(y, z, grad_y.to(wide.dtype))
    grad_x = u * scale
    if grad_loss is not None:
        a, b = (grad_loss * coefficients).view(2, 1, -1, 1, 1).to(wide.dtype)
        grad_x = grad_x + (a + b * wide)
    if not affine:
        return grad_x.to(x.dtype), wide.new_empty(0), wide.new_empty(0)
    centred = wide - norm.running_mean.view(1, -1, 1, 1).to(wide.dtype)
    invstd = torch.rsqrt(norm.running_var.to(wide.dtype) + norm.eps)
    return grad_x.to(x.dtype), (u * centred).sum((0, 2, 3)) * invstd, u.sum((0, 2, 3))


def fold(
    weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the scale and shift [C], float64, of eval-mode BatchNorm: bn(x) = scale · x + shift."""
    scale = torch.rsqrt(running_var.double() + eps)
    if weight is not None:
        scale = scale * weight.double()
    shift = -running_mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def _per_channel(norm: BatchNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return `fold`'s scale and shift [1, C, 1, 1] in `dtype`."""
    weight, bias, running_mean, running_var, eps, *_ = norm
    scale, shift = fold(weight, bias, running_mean, running_var, eps)
    return scale.view(1, -1, 1, 1).to(dtype), shift.view(1, -1, 1, 1).to(dtype)


def _activate(z: Tensor, activation: Activation, negative_slope: float) -> Tensor:
    if activation == "relu":
        return F.relu(z)
    if activation == "relu6":
        return F.relu6(z)
    if activation == "leaky_relu":
        return F.leaky_relu(z, negative_slope)
    return F.silu(z) if activation == "silu" else z


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
