"""Plain torch: what the kernels must equal, and what runs where they cannot. All of it in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
) -> tuple[Tensor, Tensor, Tensor]:
    """total, kl and ce of `kernels.kd_loss.kd_loss`, float64, differentiable by autograd."""
    student, teacher = student.double(), teacher.double()
    log_q, log_p = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    kl = temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    if labels is None:
        return w_kl * kl, kl, kl.new_zeros(())
    rows = F.cross_entropy(
        student, labels, reduction="none", label_smoothing=label_smoothing, ignore_index=ignore_index
    )
    ce = rows.sum() / (labels != ignore_index).sum().clamp(min=1)
    return w_kl * kl + w_ce * ce, kl, ce


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
    """total, kl, ce and total's gradients [B, C] in their `gradient_dtype`, empty where not asked for."""
    wide_student, wide_teacher = student.double(), teacher.double()
    log_q, log_p = F.log_softmax(wide_student / temperature, 1), F.log_softmax(wide_teacher / temperature, 1)
    p, difference = log_p.exp(), log_q - log_p
    kl_rows = -torch.where(p > 0, p * difference, 0).sum(1, keepdim=True)
    kl = temperature**2 * kl_rows.sum() / len(student)
    weight = w_kl * temperature / len(student) if len(student) > 0 else 0
    grad_student = weight * (log_q.exp() - p)
    grad_teacher = weight * torch.where(p > 0, p * (-difference - kl_rows), 0)
    ce = kl.new_zeros(())
    if labels is not None:
        ce, grad_ce = _cross_entropy(wide_student, labels, label_smoothing, ignore_index)
        grad_student += w_ce * grad_ce
    wide = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return (
        (w_kl * kl + w_ce * ce).to(wide),
        kl.to(wide),
        ce.to(wide),
        grad_student.to(gradient_dtype(student)) if student_gradient else empty_gradient(student),
        grad_teacher.to(gradient_dtype(teacher)) if teacher_gradient else empty_gradient(teacher),
    )


def gradient_dtype(logits: Tensor) -> torch.dtype:
    """That of the gradient kept until the backward pass: float16's waits in float32 for the loss scale."""
    return torch.float32 if logits.dtype == torch.float16 else logits.dtype


def empty_gradient(logits: Tensor, wanted: bool = False) -> Tensor:
    """Where the gradient of the logits goes: like them if `wanted`, else without rows."""
    rows, classes = logits.shape
    return logits.new_empty((rows if wanted else 0, classes), dtype=gradient_dtype(logits))


def check_labels(labels: Tensor, classes: int, ignore_index: int) -> None:
    """ValueError at the first label that is neither a class nor `ignore_index`. Waits for the device."""
    wrong = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise wrong_label(int(labels[row]), row, classes)


def wrong_label(label: int, row: int, classes: int) -> ValueError:
    return ValueError(f"labels[{row}] is {label}, but there are {classes} classes")


def _cross_entropy(
    student: Tensor, labels: Tensor, label_smoothing: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Mean over the rows that are not ignored, and its gradient; NaN where a label is not a class."""
    classes = student.shape[1]
    if labels.device.type == "cpu":
        check_labels(labels, classes, ignore_index)
    counted = labels != ignore_index
    known = (labels >= 0) & (labels < classes)
    log_q = F.log_softmax(student, 1)
    target = torch.full_like(student, label_smoothing / classes if classes > 0 else 0)
    row = torch.where(known, labels, 0).unsqueeze(1)
    target.scatter_add_(1, row, torch.full_like(target[:, :1], 1 - label_smoothing))
    rows = torch.where(known, -torch.where(target > 0, target * log_q, 0).sum(1), torch.nan)
    number = counted.sum().clamp(min=1)
    gradient = torch.where(counted.unsqueeze(1), log_q.exp() - target, 0) / number
    return torch.where(counted, rows, 0).sum() / number, gradient
