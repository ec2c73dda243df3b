"""Plain torch: what the kernels must equal, and what runs where they cannot."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["none", "relu", "relu6", "leaky_relu", "silu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def activate(z: Tensor, activation: Activation, negative_slope: float) -> Tensor:
    if activation == "relu":
        return F.relu(z)
    if activation == "relu6":
        return F.relu6(z)
    if activation == "leaky_relu":
        return F.leaky_relu(z, negative_slope)
    return F.silu(z) if activation == "silu" else z


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
    """y [B, C, H, W] and the statistics loss of `kernels.bn_stats.bn_stats`, differentiable by autograd.

    Computed in float32, or in float64 where x is; y is rounded to x's dtype once.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    weight, bias = (None if p is None else p.to(wide.dtype) for p in (weight, bias))
    running_mean, running_var = running_mean.to(wide.dtype), running_var.to(wide.dtype)
    normalized = F.batch_norm(wide, running_mean, running_var, weight, bias, eps=eps)
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    loss = torch.linalg.vector_norm(var - running_var) + torch.linalg.vector_norm(mean - running_mean)
    return activate(normalized, activation, negative_slope).to(x.dtype), loss


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    activation: Activation,
    negative_slope: float,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, loss and the coefficients [2, C] of d loss / d x = a + b · x; both 0 without `statistics`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale, shift = (
        p.view(1, -1, 1, 1).to(wide.dtype) for p in fold(weight, bias, running_mean, running_var, eps)
    )
    y = activate(wide * scale + shift, activation, negative_slope).to(x.dtype)
    if not statistics:
        return y, wide.new_zeros(()), wide.new_zeros(2, x.shape[1])
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    d_mean, d_var = mean - running_mean.to(wide.dtype), var - running_var.to(wide.dtype)
    mean_norm, var_norm = torch.linalg.vector_norm(d_mean), torch.linalg.vector_norm(d_var)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    b = torch.where(var_norm > 0, 2 * d_var / (count * var_norm), 0)
    a = torch.where(mean_norm > 0, d_mean / (count * mean_norm), 0) - b * mean
    return y, mean_norm + var_norm, torch.stack([a, b])


def backward(
    grad_y: Tensor,
    grad_loss: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    coefficients: Tensor,
    eps: float,
    activation: Activation,
    negative_slope: float,
    statistics: bool,
    affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """grad_x, and with `affine` the gradients of weight and bias [C]; else empty ones."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale, shift = (
        p.view(1, -1, 1, 1).to(wide.dtype) for p in fold(weight, bias, running_mean, running_var, eps)
    )
    with torch.enable_grad():
        z = (wide * scale + shift).detach().requires_grad_()
        (u,) = torch.autograd.grad(activate(z, activation, negative_slope), z, grad_y.to(wide.dtype))
    grad_x = u * scale
    if statistics:
        a, b = (grad_loss * coefficients).view(2, 1, -1, 1, 1).to(wide.dtype)
        grad_x = grad_x + (a + b * wide)
    if not affine:
        return grad_x.to(x.dtype), wide.new_empty(0), wide.new_empty(0)
    centred = wide - running_mean.view(1, -1, 1, 1).to(wide.dtype)
    invstd = torch.rsqrt(running_var.to(wide.dtype) + eps)
    return grad_x.to(x.dtype), (u * centred).sum((0, 2, 3)) * invstd, u.sum((0, 2, 3))


def fold(
    weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """scale and shift [C], float64, of eval-mode BatchNorm: bn(x) = scale · x + shift."""
    scale = torch.rsqrt(running_var.double() + eps)
    if weight is not None:
        scale = scale * weight.double()
    shift = -running_mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()
