"""The distillation loss. It is computed in float32, or in float64 if the logits are float64."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.config.distill import Loss
from kernels.kd_loss import kd_loss, standardized

IGNORED = -100


class DistillationLoss(NamedTuple):
    """Scalars on the logits' device. Only `total` has gradients; the other terms are not weighted."""

    total: Tensor
    kl: Tensor
    """The soft term, whichever `distill.loss` names"""
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
    loss: Loss = "kl",
    standardize: bool = False,
    dkd_weights: tuple[float, float] = (1.0, 8.0),
    dist_weights: tuple[float, float] = (1.0, 1.0),
    agrees: Tensor | None = None,
    relative_agreement: float = 1.0,
    features: Sequence[tuple[Tensor, Tensor]] = (),
) -> DistillationLoss:
    """Return the student's loss.

    It is w_kl · soft + w_ce · CE + w_feature · MSE(aligned student feature, teacher's), with the mean of the
    errors if there are several features. The soft term is T² · KL(teacher ‖ student), as in DDA (arXiv
    2410.17606), or `dkd` or `dist`.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        labels: int64 [B].
        standardize: take z-scores of the logits in `kl` and `dkd`.
        dkd_weights: alpha and beta.
        dist_weights: beta and gamma.
        agrees: bool [B], limits the cross-entropy to rows whose label is the teacher's class.
        relative_agreement: if the rows are one of several equal parts of a batch, the share of agreeing rows
            in this part over their share in the batch. The mean loss of the parts is then the batch's loss,
            except that `dist` correlates over the rows of each part.
        features: pairs of an aligned student feature and the teacher's, both [B, C_t, H, W] or [B, C_t].
    """
    ce_share = 1.0
    if agrees is not None:
        labels, ce_share = torch.where(agrees, labels, IGNORED), relative_agreement
    fused = kd_loss(
        student_logits,
        teacher_logits,
        labels,
        temperature=temperature,
        w_kl=w_kl if loss == "kl" else 0.0,
        w_ce=w_ce * ce_share,
        ignore_index=IGNORED,
        standardize=standardize and loss == "kl",
    )
    total, soft, ce = fused.total, fused.kl, fused.ce * ce_share
    if loss != "kl":
        student, teacher = _wide(student_logits), _wide(teacher_logits)
        if standardize:
            student, teacher = standardized(student), standardized(teacher)
        soft = (
            dkd(student, teacher, temperature, *dkd_weights)
            if loss == "dkd"
            else dist(student, teacher, temperature, *dist_weights)
        )
        total, soft = total + w_kl * soft, soft.detach()
    feature = total.new_zeros(())
    if features:
        error = torch.stack([F.mse_loss(_wide(ours), _wide(theirs)) for ours, theirs in features]).mean()
        total, feature = total + w_feature * error, error.detach()
    return DistillationLoss(total, soft, ce, feature)


def dkd(student: Tensor, teacher: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """Return T² (alpha · TCKD + beta · NCKD) of logits [B, C], the mean over the rows.

    Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679). KL is TCKD + (1 - p) · NCKD
    for the teacher's probability p of the target: TCKD is KL between the target and all other classes
    together, NCKD is KL among the others. The target is the teacher's top-1 class, because an image may be
    mixed and have no label.
    """
    target = teacher.argmax(1, keepdim=True)
    index = torch.arange(teacher.shape[1] - 1, device=teacher.device)
    others = index + (index >= target)  # [B, C - 1]

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of target and rest [B, 2], and of the other classes."""
        of_others = logits.gather(1, others)
        rest = temperature * torch.logsumexp(of_others / temperature, 1, keepdim=True)
        return torch.cat([logits.gather(1, target), rest], 1), of_others

    (student_pair, student_others), (teacher_pair, teacher_others) = split(student), split(teacher)
    tckd = kd_loss(student_pair, teacher_pair, temperature=temperature, w_kl=alpha).total
    nckd = kd_loss(student_others, teacher_others, temperature=temperature, w_kl=beta).total
    return tckd + nckd


def dist(student: Tensor, teacher: Tensor, temperature: float, beta: float, gamma: float) -> Tensor:
    """Return T² (beta · inter + gamma · intra) of logits [B, C].

    Huang et al., NeurIPS 2022, arXiv 2205.10536: 1 - Pearson's correlation of both sides' probabilities,
    inter in each row, intra in each class over the rows, each the mean.
    """
    q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    return temperature**2 * (beta * _uncorrelated(q, p, 1) + gamma * _uncorrelated(q, p, 0))


def _uncorrelated(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Return 1 - Pearson's correlation along `dim`, the mean over the other dimension.

    It is computed as |u - v|² / 2 of the directions u and v, which is exact for equal sides. A constant has
    no direction and no gradient: it adds 1/2, or 0 if both sides are constant, as in a batch of one row.
    """
    return (_direction(a, dim) - _direction(b, dim)).square().sum(dim).mean() / 2


def _direction(values: Tensor, dim: int) -> Tensor:
    """Return the values less their mean, with norm 1; 0 if they are constant up to rounding."""
    centred = values - values.mean(dim, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
    size = torch.linalg.vector_norm(values.detach(), dim=dim, keepdim=True)
    varies = norm > 1e-6 * size + 1e-12
    return torch.where(varies, centred / torch.where(varies, norm, 1), 0)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
