"""The distillation loss. It is computed in float32, or in float64 if the logits are float64."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.kd_loss import kd_loss

IGNORED = -100


class DistillationLoss(NamedTuple):
    """Scalars on the logits' device. Only `total` has gradients; the other terms are not weighted."""

    total: Tensor
    kl: Tensor
    ce: Tensor
    feature: Tensor


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
    relative_agreement: float = 1.0,
    features: tuple[Tensor, Tensor] | None = None,
) -> DistillationLoss:
    """Return the student's loss L_S of DDA (arXiv 2410.17606).

    It is w_kl · T² · KL(teacher ‖ student) + w_ce · CE + w_feature · MSE(aligned student feature, teacher's).

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        labels: int64 [B].
        agrees: bool [B], limits the cross-entropy to rows whose label is the teacher's class.
        relative_agreement: if the rows are one of several equal parts of a batch, the share of agreeing rows
            in this part over their share in the batch. The mean loss of the parts is then the batch's loss.
        features: the aligned student feature and the teacher's, both [B, C_t, H, W].
    """
    ce_share = 1.0
    if agrees is not None:
        labels, ce_share = torch.where(agrees, labels, IGNORED), relative_agreement
    loss = kd_loss(
        student_logits,
        teacher_logits,
        labels,
        temperature=temperature,
        w_kl=w_kl,
        w_ce=w_ce * ce_share,
        ignore_index=IGNORED,
    )
    ce = loss.ce * ce_share
    if features is None:
        return DistillationLoss(loss.total, loss.kl, ce, loss.total.new_zeros(()))
    feature = F.mse_loss(_wide(features[0]), _wide(features[1]))
    return DistillationLoss(loss.total + w_feature * feature, loss.kl, ce, feature.detach())


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
