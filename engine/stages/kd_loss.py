"""The distillation loss. Everything here is computed in float32, or float64 where the logits are."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class DistillationLoss(NamedTuple):
    """Scalars on the logits' device; only `total` carries a gradient, the parts are before their weights."""

    total: Tensor
    kl: Tensor
    ce: Tensor
    feature: Tensor


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), averaged over rows (Hinton, arXiv 1503.02531).

    Both logits [B, C], any floating dtype. Returns a scalar; its gradient flows to both sides.
    """
    student = F.log_softmax(_wide(student_logits) / temperature, 1)
    teacher = F.log_softmax(_wide(teacher_logits) / temperature, 1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def cross_entropy(logits: Tensor, labels: Tensor, agrees: Tensor | None = None) -> Tensor:
    """Sum of the cross-entropies of the rows where `agrees`, over their number; 0 where no row agrees.

    logits [B, C]; labels int64 [B]; agrees bool [B], None for all rows. Never synchronizes with the device.
    """
    if agrees is None:
        return F.cross_entropy(_wide(logits), labels)
    rows = F.cross_entropy(_wide(logits), labels, reduction="none")
    return torch.where(agrees, rows, 0).sum() / agrees.sum().clamp(min=1)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    w_kl: float,
    w_ce: float,
    w_feature: float = 0.0,
    agrees: Tensor | None = None,
    features: tuple[Tensor, Tensor] | None = None,
) -> DistillationLoss:
    """w_kl · `kd_loss` + w_ce · `cross_entropy` + w_feature · MSE(aligned student feature, teacher feature).

    The student's loss L_S of DDA (arXiv 2410.17606). Logits [B, C]; labels int64 [B]; agrees bool [B] limits
    the cross-entropy to rows whose label the teacher shares; features two tensors [B, C_t, H, W].
    """
    kl = kd_loss(student_logits, teacher_logits, temperature)
    ce = cross_entropy(student_logits, labels, agrees)
    feature = kl.new_zeros(()) if features is None else F.mse_loss(_wide(features[0]), _wide(features[1]))
    total = w_kl * kl + w_ce * ce + w_feature * feature
    return DistillationLoss(total, kl.detach(), ce.detach(), feature.detach())


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
