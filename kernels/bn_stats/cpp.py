"""Calls into csrc/by_isa/bn_stats/."""

import torch
from torch import Tensor

from kernels import _native
from kernels.backend import DTYPES
from kernels.bn_stats.reference import ACTIVATIONS, BatchNorm
from kernels.layout import is_channels_last


def forward(x: Tensor, norm: BatchNorm, statistics: bool) -> tuple[Tensor, Tensor, Tensor]:
    norm = norm.converted(_float)
    y = torch.empty_like(x)
    loss = x.new_empty((), dtype=torch.float32) if statistics else x.new_zeros((), dtype=torch.float32)
    coefficients = x.new_empty((2, x.shape[1]), dtype=torch.float32)
    _native.bn_stats_forward(
        _describe(x, norm),
        x=x.data_ptr(),
        y=y.data_ptr(),
        loss=loss.data_ptr() if statistics else 0,
        coefficients=coefficients.data_ptr() if statistics else 0,
    )
    return y, loss, coefficients if statistics else coefficients.zero_()


def backward(
    grad_y: Tensor, grad_loss: Tensor | None, x: Tensor, norm: BatchNorm, coefficients: Tensor, affine: bool
) -> tuple[Tensor, Tensor, Tensor]:
    assert grad_y.dtype == x.dtype
    assert is_channels_last(grad_y) == is_channels_last(x)
    norm = norm.converted(_float)
    grad_x = torch.empty_like(x)
    channels = x.shape[1] if affine else 0
    grad_weight, grad_bias = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    _native.bn_stats_backward(
        _describe(x, norm),
        grad_y=grad_y.data_ptr(),
        grad_loss=0.0 if grad_loss is None else grad_loss.item(),
        x=x.data_ptr(),
        coefficients=0 if grad_loss is None else coefficients.data_ptr(),
        grad_x=grad_x.data_ptr(),
        grad_weight=grad_weight.data_ptr() if affine else 0,
        grad_bias=grad_bias.data_ptr() if affine else 0,
    )
    return grad_x, grad_weight, grad_bias


def _float(parameter: Tensor) -> Tensor:
    """Return a contiguous float32 tensor, which must outlive the call into C++."""
    return parameter.detach().float().contiguous()


def _describe(x: Tensor, norm: BatchNorm) -> _native.BnStats:
    batch, channels, height, width = x.shape
    return _native.BnStats(
        dtype=DTYPES[x.dtype],
        channels_last=is_channels_last(x),
        batch=batch,
        channels=channels,
        spatial=height * width,
        weight=0 if norm.weight is None else norm.weight.data_ptr(),
        bias=0 if norm.bias is None else norm.bias.data_ptr(),
        running_mean=norm.running_mean.data_ptr(),
        running_var=norm.running_var.data_ptr(),
        eps=norm.eps,
        activation=ACTIVATIONS.index(norm.activation),
        negative_slope=norm.negative_slope,
        threads=torch.get_num_threads(),
    )
