"""Eval-mode BatchNorm, its activation and its statistics loss in one pass; see README.md."""

import torch
from torch import Tensor

from kernels.bn_stats import op as _op  # noqa: F401  (registers the op)
from kernels.bn_stats.reference import ACTIVATIONS, Activation

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
    """y = act(BatchNorm_eval(x)) and ||var(x) - running_var||_2 + ||mean(x) - running_mean||_2.

    x [B, C, H, W], float32, bfloat16 or float16 (float64: plain torch), contiguous or channels_last; weight,
    bias and the running statistics [C], any floating dtype. mean and var are over B, H and W, the variance
    that of the population, accumulated in float32 or better (DeepInversion, arXiv 1912.08795, eq. 4). Returns
    y in x's dtype and layout and a float32 scalar; gradients flow to x, weight and bias, once. Raises
    ValueError for shapes, devices and activations that are wrong.
    """
    _check(x, weight, bias, running_mean, running_var, activation)
    y, loss, _ = torch.ops.kernels.bn_stats(
        x, weight, bias, running_mean, running_var, eps, activation, negative_slope, True
    )
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
    """The y of `bn_stats` alone, for a network whose statistics nobody asks for."""
    _check(x, weight, bias, running_mean, running_var, activation)
    y, _, _ = torch.ops.kernels.bn_stats(
        x, weight, bias, running_mean, running_var, eps, activation, negative_slope, False
    )
    return y


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    activation: Activation,
) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x must be floating point [B, C, H, W], not {x.dtype} {list(x.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"no activation '{activation}'; there are {', '.join(ACTIVATIONS)}")
    for parameter in (weight, bias, running_mean, running_var):
        if parameter is not None and (parameter.shape != x.shape[1:2] or parameter.device != x.device):
            raise ValueError(
                f"weight, bias, running_mean and running_var must be [{x.shape[1]}] on {x.device}, "
                f"not {list(parameter.shape)} on {parameter.device}"
            )
