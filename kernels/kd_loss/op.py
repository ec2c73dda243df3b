"""Registration of `kernels::kd_loss` with torch: implementations, fake tensors, autograd."""

from typing import Any

import torch
from torch import Tensor
from torch.library import define, impl, register_autograd, register_fake

from kernels.backend import backend_for, implementation
from kernels.kd_loss.reference import Settings, empty_gradient, loss_dtype
from kernels.layout import dense_rows

_SETTINGS = (
    "float temperature, float w_kl, float w_ce, float label_smoothing, int ignore_index,"
    " bool standardize, bool student_gradient, bool teacher_gradient"
)

define(
    "kernels::kd_loss",
    f"(Tensor student, Tensor teacher, Tensor? labels, {_SETTINGS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@impl("kernels::kd_loss", ("cpu", "cuda"))
def _forward(student: Tensor, teacher: Tensor, labels: Tensor | None, *settings: Any) -> tuple[Tensor, ...]:
    backend = backend_for(student if student.dtype == torch.float64 else teacher)
    return implementation("kernels.kd_loss", backend).forward(
        dense_rows(student), dense_rows(teacher), labels, Settings(*settings)
    )


@register_fake("kernels::kd_loss")
def _forward_fake(
    student: Tensor, teacher: Tensor, _labels: Tensor | None, *settings: Any
) -> tuple[Tensor, ...]:
    wanted = Settings(*settings)
    return (
        *(student.new_empty((), dtype=loss_dtype(student, teacher)) for _ in range(3)),
        empty_gradient(student, wanted.student_gradient),
        empty_gradient(teacher, wanted.teacher_gradient),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *parts, grad_student, grad_teacher = output
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype
    ctx.set_materialize_grads(False)  # do not allocate zeros that nothing reads
    ctx.mark_non_differentiable(*parts, grad_student, grad_teacher)
    ctx.save_for_backward(grad_student, grad_teacher)


def _autograd(ctx: Any, grad_total: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise NotImplementedError("kd_loss is differentiable once: it has no backward with create_graph=True")
    if grad_total is None:
        return (None,) * 11
    gradients = (
        _scaled(gradient, grad_total).to(dtype) if wanted else None
        for gradient, dtype, wanted in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False)
    )
    return *gradients, *[None] * 9


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """Return gradient · factor; on a CPU, where reading the factor is free, skip a factor of 1."""
    is_one = type(factor) is Tensor and factor.device.type == "cpu" and factor.item() == 1
    return gradient if is_one else gradient * factor


register_autograd("kernels::kd_loss", _autograd, setup_context=_setup_context)
