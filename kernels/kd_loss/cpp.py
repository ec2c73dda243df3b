"""Calls into csrc/by_isa/kd_loss.cpp."""

import torch
from torch import Tensor

from kernels import _native
from kernels.backend import DTYPES
from kernels.kd_loss.reference import Settings, empty_gradient, wrong_label


def forward(
    student: Tensor, teacher: Tensor, labels: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    labels = None if labels is None else labels.contiguous()
    total, kl, ce = (student.new_empty((), dtype=torch.float32) for _ in range(3))
    grad_student = empty_gradient(student, settings.student_gradient)
    grad_teacher = empty_gradient(teacher, settings.teacher_gradient)
    wrong = _native.kd_loss_forward(
        _describe(student, teacher, labels, settings),
        student=student.data_ptr(),
        teacher=teacher.data_ptr(),
        total=total.data_ptr(),
        kl=kl.data_ptr(),
        ce=ce.data_ptr(),
        grad_student=grad_student.data_ptr() if settings.student_gradient else 0,
        grad_teacher=grad_teacher.data_ptr() if settings.teacher_gradient else 0,
    )
    if wrong >= 0:
        assert labels is not None
        raise wrong_label(int(labels[wrong]), wrong, student.shape[1])
    return total, kl, ce, grad_student, grad_teacher


def _describe(student: Tensor, teacher: Tensor, labels: Tensor | None, settings: Settings) -> _native.KdLoss:
    rows, classes = student.shape
    return _native.KdLoss(
        student_dtype=DTYPES[student.dtype],
        teacher_dtype=DTYPES[teacher.dtype],
        rows=rows,
        classes=classes,
        student_stride=student.stride(0),
        teacher_stride=teacher.stride(0),
        labels=0 if labels is None else labels.data_ptr(),
        temperature=settings.temperature,
        w_kl=settings.w_kl,
        w_ce=settings.w_ce,
        label_smoothing=settings.label_smoothing,
        ignore_index=settings.ignore_index,
        standardize=settings.standardize,
        threads=torch.get_num_threads(),
    )
