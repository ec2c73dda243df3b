"""Registration of `kernels::bn_stats` with torch: implementations, fake tensors, autograd."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import define, impl, register_autograd, register_fake

from kernels.backend import backend_for, implementation
from kernels.bn_stats.reference import BatchNorm
from kernels.layout import dense, dense_like

_NORM = (
    "Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var,"
    " float eps, str activation, float negative_slope"
)

define("kernels::bn_stats", f"(Tensor x, {_NORM}, bool statistics) -> (Tensor, Tensor, Tensor)")
define(
    "kernels::bn_stats_backward",
    f"(Tensor grad_y, Tensor? grad_loss, Tensor x, {_NORM}, Tensor coefficients, bool affine)"
    " -> (Tensor, Tensor, Tensor)",
)


def _implementation(x: Tensor) -> ModuleType:
    return implementation("kernels.bn_stats", backend_for(x))


@impl("kernels::bn_stats", ("cpu", "cuda"))
def _forward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *norm, statistics = arguments
    return _implementation(x).forward(dense(x), BatchNorm(*norm), statistics)


@impl("kernels::bn_stats_backward", ("cpu", "cuda"))
def _backward(
    grad_y: Tensor, grad_loss: Tensor | None, x: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *norm, coefficients, affine = arguments
    x = dense(x)
    return _implementation(x).backward(
        dense_like(grad_y, x), grad_loss, x, BatchNorm(*norm), coefficients, affine
    )


@register_fake("kernels::bn_stats")
def _forward_fake(x: Tensor, *_arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.empty_like(dense(x)), x.new_empty((), dtype=wide), x.new_empty((2, x.shape[1]), dtype=wide)


@register_fake("kernels::bn_stats_backward")
def _backward_fake(
    _grad_y: Tensor, _grad_loss: Tensor | None, x: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    channels = x.shape[1] if arguments[-1] else 0
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.empty_like(dense(x)), *(x.new_empty(channels, dtype=wide) for _ in range(2))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, eps, activation, negative_slope, statistics = inputs
    ctx.settings, ctx.statistics = (eps, activation, negative_slope), statistics
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, output[2])


def _autograd(ctx: Any, grad_y: Tensor | None, grad_loss: Tensor | None, _: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "bn_stats is differentiable once: it has no backward with create_graph=True"
        )
    _, wants_weight, wants_bias, *_ = ctx.needs_input_grad
    x, *parameters, coefficients = ctx.saved_tensors
    weight, bias, *_ = parameters
    grad_x, grad_weight, grad_bias = torch.ops.kernels.bn_stats_backward(
        torch.zeros_like(x) if grad_y is None else grad_y,
        grad_loss if ctx.statistics else None,
        x,
        *parameters,
        *ctx.settings,
        coefficients,
        wants_weight or wants_bias,
    )
    return (
        grad_x,
        grad_weight.to(weight.dtype) if wants_weight else None,
        grad_bias.to(bias.dtype) if wants_bias else None,
        *[None] * 6,
    )


register_autograd("kernels::bn_stats", _autograd, setup_context=_setup_context)
