"""Distillation loss from logits, and its gradients, in one kernel; see README.md."""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.kd_loss import op as _op  # noqa: F401  (registers the op)

__all__ = ["KdLoss", "kd_loss"]


class KdLoss(NamedTuple):
    """Scalars on the logits' device; only `total` carries a gradient, the parts are before their weights."""

    total: Tensor
    kl: Tensor
    ce: Tensor


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    w_kl: float = 1.0,
    w_ce: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> KdLoss:
    """w_kl · T² · KL(softmax(teacher / T) ‖ softmax(student / T)) + w_ce · CE(student, labels).

    Hinton, Vinyals and Dean, arXiv 1503.02531, section 2. Both logits [B, C], each float32, bfloat16 or
    float16 (float64: plain torch), their rows any number of elements apart; labels int64 [B]. KL is averaged
    over all rows; CE, without labels 0, over those whose label is not `ignore_index`, with torch's label
    smoothing. Where there is no such row the CE and its gradient are 0; torch has NaN. The KL of no rows at
    all is NaN, as in torch.

    Float32 scalars (float64 where either side is); the gradient of `total` flows to the logits that require
    it, student's, teacher's or both, and has no gradient of its own. ValueError where shapes, dtypes, devices
    or settings are wrong and, on a CPU, where a label is not in [0, C); on a GPU, which never waits for the
    host, such a label makes `total` and `ce` NaN.
    """
    _check(student_logits, teacher_logits, labels, temperature, label_smoothing)
    grad = torch.is_grad_enabled()
    total, kl, ce, _, _ = torch.ops.kernels.kd_loss.default(
        student_logits,
        teacher_logits,
        labels,
        temperature,
        w_kl,
        w_ce,
        label_smoothing,
        ignore_index,
        grad and student_logits.requires_grad,
        grad and teacher_logits.requires_grad,
    )
    return KdLoss(total, kl, ce)


def _check(
    student: Tensor, teacher: Tensor, labels: Tensor | None, temperature: float, label_smoothing: float
) -> None:
    if student.dim() != 2 or student.shape != teacher.shape:
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ValueError(f"student_logits and teacher_logits must both be [B, C], not {shapes}")
    if not (student.is_floating_point() and teacher.is_floating_point()):
        raise ValueError(f"logits must be floating point, not {student.dtype} and {teacher.dtype}")
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != student.shape[:1]):
        raise ValueError(
            f"labels must be int64 [{student.shape[0]}], not {labels.dtype} {list(labels.shape)}"
        )
    devices = [x.device for x in (student, teacher, labels) if x is not None]
    if any(device != devices[0] for device in devices):
        names = " and ".join(map(str, devices))
        raise ValueError(f"student_logits, teacher_logits and labels must be on one device, not {names}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie between 0 and 1, not {label_smoothing}")
