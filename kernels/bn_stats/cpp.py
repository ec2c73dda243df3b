"""Calls of csrc/by_isa/bn_stats/."""

import torch
from torch import Tensor

from kernels import _native
from kernels.backend import DTYPES
from kernels.bn_stats.reference import ACTIVATIONS, Activation
from kernels.layout import is_channels_last


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
    parameters = _float(weight, bias, running_mean, running_var)
    y = torch.empty_like(x)
    loss = x.new_empty((), dtype=torch.float32) if statistics else x.new_zeros((), dtype=torch.float32)
    coefficients = x.new_empty((2, x.shape[1]), dtype=torch.float32)
    op = _describe(x, parameters, eps, activation, negative_slope)
    outputs = (loss, coefficients) if statistics else (None, None)
    _native.bn_stats_forward(op, _address(x), _address(y), *map(_address, outputs))
    return y, loss, coefficients if statistics else coefficients.zero_()


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
    assert grad_y.dtype == x.dtype
    assert is_channels_last(grad_y) == is_channels_last(x)
    parameters = _float(weight, bias, running_mean, running_var)
    grad_x = torch.empty_like(x)
    channels = x.shape[1] if affine else 0
    grad_weight, grad_bias = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    op = _describe(x, parameters, eps, activation, negative_slope)
    _native.bn_stats_backward(
        op,
        _address(grad_y),
        grad_loss.item() if statistics else 0.0,
        _address(x),
        _address(coefficients if statistics else None),
        _address(grad_x),
        *(_address(gradient if affine else None) for gradient in (grad_weight, grad_bias)),
    )
    return grad_x, grad_weight, grad_bias


def _float(*parameters: Tensor | None) -> list[Tensor | None]:
    return [None if p is None else p.detach().float().contiguous() for p in parameters]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _describe(
    x: Tensor, parameters: list[Tensor | None], eps: float, activation: Activation, negative_slope: float
) -> _native.BnStats:
    batch, channels, height, width = x.shape
    weight, bias, running_mean, running_var = map(_address, parameters)
    return _native.BnStats(
        dtype=DTYPES[x.dtype],
        channels_last=is_channels_last(x),
        batch=batch,
        channels=channels,
        spatial=height * width,
        weight=weight,
        bias=bias,
        running_mean=running_mean,
        running_var=running_var,
        eps=eps,
        activation=ACTIVATIONS.index(activation),
        negative_slope=negative_slope,
        threads=torch.get_num_threads(),
    )
