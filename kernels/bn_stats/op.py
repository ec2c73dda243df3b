"""Registration of `kernels::bn_stats` with torch: implementations, fake tensors, autograd."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import define, impl, register_autograd, register_fake

from kernels.backend import backend_for
from kernels.bn_stats import reference
from kernels.layout import dense, dense_like

_PARAMETERS = "Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var"
_SETTINGS = "float eps, str activation, float negative_slope, bool statistics"

define("kernels::bn_stats", f"(Tensor x, {_PARAMETERS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor)")
define(
    "kernels::bn_stats_backward",
    f"(Tensor grad_y, Tensor grad_loss, Tensor x, {_PARAMETERS}, Tensor coefficients, {_SETTINGS},"
    " bool affine) -> (Tensor, Tensor, Tensor)",
)


def _implementation(x: Tensor) -> ModuleType:
    backend = backend_for(x)
    if backend == "cpp":
        from kernels.bn_stats import cpp

        return cpp
    if backend == "triton":
        from kernels.bn_stats import triton

        return triton
    return reference


@impl("kernels::bn_stats", ("cpu", "cuda"))
def _forward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _implementation(x).forward(dense(x), *arguments)


@impl("kernels::bn_stats_backward", ("cpu", "cuda"))
def _backward(grad_y: Tensor, grad_loss: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x = dense(x)
    return _implementation(x).backward(dense_like(grad_y, x), grad_loss, x, *arguments)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@register_fake("kernels::bn_stats")
def _forward_fake(x: Tensor, *_arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(x)
    return torch.empty_like(dense(x)), x.new_empty((), dtype=wide), x.new_empty((2, x.shape[1]), dtype=wide)


@register_fake("kernels::bn_stats_backward")
def _backward_fake(_grad_y: Tensor, _grad_loss: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    channels = x.shape[1] if arguments[-1] else 0
    return torch.empty_like(dense(x)), *(x.new_empty(channels, dtype=_wide(x)) for _ in range(2))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, eps, activation, negative_slope, statistics = inputs
    ctx.settings = eps, activation, negative_slope, statistics
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, output[2])


def _autograd(ctx: Any, grad_y: Tensor | None, grad_loss: Tensor | None, _: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "bn_stats is differentiable once: it has no backward with create_graph=True"
        )
    _, wants_weight, wants_bias, *_ = ctx.needs_input_grad
    x, weight, bias, *statistics = ctx.saved_tensors
    *settings, with_loss = ctx.settings
    if grad_y is None:
        grad_y = torch.zeros_like(x)
    if grad_loss is None:
        grad_loss, with_loss = x.new_zeros((), dtype=_wide(x)), False
    grad_x, grad_weight, grad_bias = torch.ops.kernels.bn_stats_backward(
        grad_y, grad_loss, x, weight, bias, *statistics, *settings, with_loss, wants_weight or wants_bias
    )
    return (
        grad_x,
        grad_weight.to(weight.dtype) if wants_weight else None,
        grad_bias.to(bias.dtype) if wants_bias else None,
        *[None] * 6,
    )


register_autograd("kernels::bn_stats", _autograd, setup_context=_setup_context)
