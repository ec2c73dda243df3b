"""Eval-mode BatchNorm, its activation and its statistics loss in one pass; see README.md."""

import torch
from torch import Tensor

from kernels.bn_stats import op as _op  # noqa: F401  (registers the op)
from kernels.bn_stats.reference import ACTIVATIONS, Activation, BatchNorm

__all__ = ["Activation", "bn_act", "bn_stats"]


def bn_stats(
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
    """Return act(BatchNorm_eval(x)) and ‖var(x) − running_var‖₂ + ‖mean(x) − running_mean‖₂.

    The statistics are over B, H and W, with population variance, and are accumulated in float32 or
    better (DeepInversion, arXiv 1912.08795, eq. 4).

    Args:
        x: float32, bfloat16 or float16 [B, C, H, W], contiguous or channels_last; float64 runs on plain
            torch.
        weight, bias, running_mean, running_var: [C], of any floating dtype.

    Returns:
        y in x's dtype and layout, and the loss, a float32 scalar. Gradients flow to x, weight and bias; they
        have no gradients of their own.

    Raises:
        ValueError: if a shape, a device or the activation is wrong.
    """
    norm = BatchNorm(weight, bias, running_mean, running_var, eps, activation, negative_slope)
    _check(x, norm)
    y, loss, _ = torch.ops.kernels.bn_stats(x, *norm, True)
    return y, loss


def bn_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    eps: float = 1e-5,
    activation: Activation = "none",
    negative_slope: float = 0.01,
) -> Tensor:
    """Return the y of `bn_stats` without computing statistics."""
    norm = BatchNorm(weight, bias, running_mean, running_var, eps, activation, negative_slope)
    _check(x, norm)
    y, _, _ = torch.ops.kernels.bn_stats(x, *norm, False)
    return y


def _check(x: Tensor, norm: BatchNorm) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x must be floating point [B, C, H, W], not {x.dtype} {list(x.shape)}")
    if norm.activation not in ACTIVATIONS:
        raise ValueError(f"activation is '{norm.activation}'; choose one of {', '.join(ACTIVATIONS)}")
    for parameter in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if parameter is not None and (parameter.shape != x.shape[1:2] or parameter.device != x.device):
            raise ValueError(
                f"weight, bias, running_mean and running_var must be [{x.shape[1]}] on {x.device}, "
                f"not {list(parameter.shape)} on {parameter.device}"
            )
