"""Distillation loss from logits, and its gradients, in one kernel; see README.md."""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.kd_loss import op as _op  # noqa: F401  (registers the op)
from kernels.kd_loss.reference import Settings, standardized

__all__ = ["KdLoss", "kd_loss", "standardized"]


class KdLoss(NamedTuple):
    """The loss and its two terms before weighting: scalars on the device of the logits."""

    total: Tensor
    """The only one that carries a gradient"""
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
    standardize: bool = False,
) -> KdLoss:
    """Return w_kl · T² · KL(softmax(teacher / T) ‖ softmax(student / T)) + w_ce · CE(student, labels).

    Hinton, Vinyals and Dean, arXiv 1503.02531, section 2. KL is averaged over all rows, and over no rows it
    is NaN, as in torch. CE is averaged over the rows whose label is not `ignore_index`, with torch's label
    smoothing. Without labels, or if every row is ignored, CE and its gradient are 0; torch returns NaN for
    the latter.

    Args:
        student_logits, teacher_logits: [B, C], each float32, bfloat16 or float16, with any row stride;
            float64 runs on plain torch.
        labels: int64 [B].
        standardize: take `standardized` logits in KL; CE keeps the raw ones. The gradient of a row is
            orthogonal to its logits and grows as their spread shrinks. An infinite logit makes the loss NaN.

    Returns:
        Float32 scalars, float64 if either side is float64. The gradient of `total` flows to whichever logits
        require it and has no gradient of its own.

    Raises:
        ValueError: if a shape, dtype, device or setting is wrong or, on a CPU, if a label is outside [0, C).
            A GPU never waits for the host: there, such a label makes `total` and `ce` NaN.
    """
    _check(student_logits, teacher_logits, labels, temperature, label_smoothing)
    grad = torch.is_grad_enabled()
    settings = Settings(
        temperature=temperature,
        w_kl=w_kl,
        w_ce=w_ce,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        standardize=standardize,
        student_gradient=grad and student_logits.requires_grad,
        teacher_gradient=grad and teacher_logits.requires_grad,
    )
    total, kl, ce, _, _ = torch.ops.kernels.kd_loss.default(student_logits, teacher_logits, labels, *settings)
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
