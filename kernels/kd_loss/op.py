"""Registration of `kernels::kd_loss` with torch: implementations, fake tensors, autograd."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import define, impl, register_autograd, register_fake

from kernels.backend import backend_for
from kernels.kd_loss import reference
from kernels.layout import dense_rows

define(
    "kernels::kd_loss",
    "(Tensor student, Tensor teacher, Tensor? labels, float temperature, float w_kl, float w_ce,"
    " float label_smoothing, int ignore_index, bool student_gradient, bool teacher_gradient)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _implementation(student: Tensor, teacher: Tensor) -> ModuleType:
    backend = backend_for(student if student.dtype == torch.float64 else teacher)
    if backend == "cpp":
        from kernels.kd_loss import cpp

        return cpp
    if backend == "triton":
        from kernels.kd_loss import triton

        return triton
    return reference


@impl("kernels::kd_loss", ("cpu", "cuda"))
def _forward(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _implementation(student, teacher).forward(dense_rows(student), dense_rows(teacher), *arguments)


@register_fake("kernels::kd_loss")
def _forward_fake(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *_, student_gradient, teacher_gradient = arguments
    wide = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return (
        *(student.new_empty((), dtype=wide) for _ in range(3)),
        reference.empty_gradient(student, student_gradient),
        reference.empty_gradient(teacher, teacher_gradient),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *parts, grad_student, grad_teacher = output
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype
    ctx.set_materialize_grads(False)  # zeros for the gradients' own gradients, which nothing reads
    ctx.mark_non_differentiable(*parts, grad_student, grad_teacher)
    ctx.save_for_backward(grad_student, grad_teacher)


def _autograd(ctx: Any, grad_total: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise NotImplementedError("kd_loss is differentiable once: it has no backward with create_graph=True")
    if grad_total is None:
        return (None,) * 10
    gradients = (
        _scaled(gradient, grad_total).to(dtype) if wanted else None
        for gradient, dtype, wanted in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False)
    )
    return *gradients, *[None] * 8


def _scaled(gradient: Tensor, by: Tensor) -> Tensor:
    """gradient · by; on a CPU, where reading `by` costs nothing, the gradient itself if that is 1."""
    is_one = type(by) is Tensor and by.device.type == "cpu" and by.item() == 1
    return gradient if is_one else gradient * by


register_autograd("kernels::kd_loss", _autograd, setup_context=_setup_context)
