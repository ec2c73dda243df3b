"""Plain torch, in float64: the ground truth for the kernels, and the implementation for all other tensors."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-7
"""Added to the standard deviation of a row, as in the released code of logit standardization."""


class Settings(NamedTuple):
    """The settings of the loss, and which gradients to compute."""

    temperature: float
    w_kl: float
    w_ce: float
    label_smoothing: float
    ignore_index: int
    standardize: bool
    student_gradient: bool
    teacher_gradient: bool


def kd_loss_reference(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    w_kl: float = 1.0,
    w_ce: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    standardize: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return total, kl and ce of `kd_loss`, float64, differentiable by autograd."""
    student, teacher = student.double(), teacher.double()
    sides = [standardized(x) if standardize else x for x in (student, teacher)]
    log_q, log_p = (F.log_softmax(x / temperature, 1) for x in sides)
    kl = temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    if labels is None:
        return w_kl * kl, kl, kl.new_zeros(())
    rows = F.cross_entropy(
        student, labels, reduction="none", label_smoothing=label_smoothing, ignore_index=ignore_index
    )
    ce = rows.sum() / (labels != ignore_index).sum().clamp(min=1)
    return w_kl * kl + w_ce * ce, kl, ce


def standardized(logits: Tensor) -> Tensor:
    """Return the z-scores of each row of logits [B, C]: (z - mean) / (population standard deviation + 1e-7).

    This is the pre-processing of logit standardization (Sun et al., CVPR 2024, arXiv 2403.01427), whose
    released code takes the sample deviation instead: at a temperature √(C / (C - 1)) times as high, the
    losses are the same.
    """
    mean = logits.mean(1, keepdim=True)
    return (logits - mean) / (logits.std(1, correction=0, keepdim=True) + EPSILON)


def forward(
    student: Tensor, teacher: Tensor, labels: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return total, kl, ce, and the gradients [B, C] of total in their `gradient_dtype`.

    A gradient that is not wanted has no rows.
    """
    temperature, w_kl, w_ce, label_smoothing, ignore_index, standardize, *wanted = settings
    student_gradient, teacher_gradient = wanted
    wide_student, wide_teacher = student.double(), teacher.double()
    sides = [standardized(x) if standardize else x for x in (wide_student, wide_teacher)]
    log_q, log_p = (F.log_softmax(x / temperature, 1) for x in sides)
    p, difference = log_p.exp(), log_q - log_p
    kl_rows = -torch.where(p > 0, p * difference, 0).sum(1, keepdim=True)
    kl = temperature**2 * kl_rows.sum() / len(student)
    weight = w_kl * temperature / len(student) if len(student) > 0 else 0
    grad_student = weight * (log_q.exp() - p)
    grad_teacher = weight * torch.where(p > 0, p * (-difference - kl_rows), 0)
    if standardize:
        grad_student = _through_standardization(grad_student, wide_student)
        grad_teacher = _through_standardization(grad_teacher, wide_teacher)
    ce = kl.new_zeros(())
    if labels is not None:
        ce, grad_ce = _cross_entropy(wide_student, labels, label_smoothing, ignore_index)
        grad_student += w_ce * grad_ce
    wide = loss_dtype(student, teacher)
    return (
        (w_kl * kl + w_ce * ce).to(wide),
        kl.to(wide),
        ce.to(wide),
        grad_student.to(gradient_dtype(student)) if student_gradient else empty_gradient(student, False),
        grad_teacher.to(gradient_dtype(teacher)) if teacher_gradient else empty_gradient(teacher, False),
    )


def loss_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    """Return the dtype of the losses: float32, or float64 if either side is float64."""
    return torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)


def gradient_dtype(logits: Tensor) -> torch.dtype:
    """Return the dtype in which the gradient of `logits` is kept until the backward pass.

    The gradient of float16 logits stays in float32, because the loss scale is applied later.
    """
    return torch.float32 if logits.dtype == torch.float16 else logits.dtype


def empty_gradient(logits: Tensor, wanted: bool) -> Tensor:
    """Allocate the gradient of `logits` [B, C]; if it is not wanted, without rows."""
    rows, classes = logits.shape
    return logits.new_empty((rows if wanted else 0, classes), dtype=gradient_dtype(logits))


def wrong_label(label: int, row: int, classes: int) -> ValueError:
    """Return the error for a label that is neither a class nor `ignore_index`."""
    return ValueError(f"labels[{row}] is {label}, but there are {classes} classes")


def _through_standardization(gradient: Tensor, logits: Tensor) -> Tensor:
    """Return the gradient of the logits [B, C] from the gradient of their z-scores, whose rows sum to 0."""
    centred = logits - logits.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    scale = deviation + EPSILON
    parallel = (gradient * centred).mean(1, keepdim=True) / (deviation * scale)
    return (gradient - centred * torch.where(deviation > 0, parallel, 0)) / scale


def _cross_entropy(
    student: Tensor, labels: Tensor, label_smoothing: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return the mean over the rows that are not ignored, and its gradient [B, C].

    Raises ValueError for a wrong label on a CPU; on a GPU the mean is NaN.
    """
    classes = student.shape[1]
    counted = labels != ignore_index
    known = (labels >= 0) & (labels < classes)
    wrong = counted & ~known
    if labels.device.type == "cpu" and wrong.any():
        row = int(wrong.nonzero()[0])
        raise wrong_label(int(labels[row]), row, classes)
    log_q = F.log_softmax(student, 1)
    target = torch.full_like(student, label_smoothing / classes if classes > 0 else 0)
    row_labels = torch.where(known, labels, 0).unsqueeze(1)
    target.scatter_add_(1, row_labels, torch.full_like(target[:, :1], 1 - label_smoothing))
    rows = torch.where(known, -torch.where(target > 0, target * log_q, 0).sum(1), torch.nan)
    number = counted.sum().clamp(min=1)
    gradient = torch.where(counted.unsqueeze(1), log_q.exp() - target, 0) / number
    return torch.where(counted, rows, 0).sum() / number, gradient
