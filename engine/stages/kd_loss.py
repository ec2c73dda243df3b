"""The distillation loss. Everything here is computed in float32, or float64 where the logits are."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.kd_loss import kd_loss

IGNORED = -100


class DistillationLoss(NamedTuple):
    """Scalars on the logits' device; only `total` carries a gradient, the parts are before their weights."""

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
    """w_kl · T² · KL(teacher ‖ student) + w_ce · CE + w_feature · MSE(aligned student feature, teacher's).

    The student's loss L_S of DDA (arXiv 2410.17606). Logits [B, C]; labels int64 [B]; agrees bool [B] limits
    the cross-entropy to rows whose label the teacher shares; features two tensors [B, C_t, H, W].

    These may be one of several equal parts of a batch: with `relative_agreement`, the share of agreeing rows
    in this part over that in the whole batch, the mean of the parts' losses is the loss of the whole.
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
