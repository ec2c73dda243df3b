"""Calls of csrc/by_isa/kd_loss.cpp."""

import torch
from torch import Tensor

from kernels import _native
from kernels.backend import DTYPES
from kernels.kd_loss.reference import empty_gradient, wrong_label


def forward(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    temperature: float,
    w_kl: float,
    w_ce: float,
    label_smoothing: float,
    ignore_index: int,
    student_gradient: bool,
    teacher_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, classes = student.shape
    labels = None if labels is None else labels.contiguous()
    total, kl, ce = (student.new_empty((), dtype=torch.float32) for _ in range(3))
    grad_student = empty_gradient(student, student_gradient)
    grad_teacher = empty_gradient(teacher, teacher_gradient)
    op = _native.KdLoss(
        student_dtype=DTYPES[student.dtype],
        teacher_dtype=DTYPES[teacher.dtype],
        rows=rows,
        classes=classes,
        student_stride=student.stride(0),
        teacher_stride=teacher.stride(0),
        labels=0 if labels is None else labels.data_ptr(),
        temperature=temperature,
        w_kl=w_kl,
        w_ce=w_ce,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        threads=torch.get_num_threads(),
    )
    wrong = _native.kd_loss_forward(
        op,
        student.data_ptr(),
        teacher.data_ptr(),
        total.data_ptr(),
        kl.data_ptr(),
        ce.data_ptr(),
        grad_student.data_ptr() if student_gradient else 0,
        grad_teacher.data_ptr() if teacher_gradient else 0,
    )
    if wrong >= 0:
        assert labels is not None
        raise wrong_label(int(labels[wrong]), wrong, classes)
    return total, kl, ce, grad_student, grad_teacher
