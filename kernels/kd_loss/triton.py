"""Triton for NVIDIA GPUs: one program per row, then one for the sums over rows, without atomics."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.kd_loss.reference import EPSILON, Settings, empty_gradient

MAX_BLOCK_C = 4096  # classes that a program holds in registers; longer rows are read again, from the cache
BLOCK_B = 1024  # rows that the single-program kernels process at a time

_LOWEST = tl.constexpr(-1e30)  # finite even if divided by _EPSILON: the difference of two -inf would be NaN
_NEAR = tl.constexpr(0.5)  # |log(q / p)| below which KL terms are summed as a series
_EPSILON = tl.constexpr(EPSILON)


@triton.jit
def _load_logits(row_ptr, o_c, m_c):
    """Return a block of a row in float32, _LOWEST beyond its end."""
    return tl.where(m_c, tl.load(row_ptr + o_c, mask=m_c, other=0).to(tl.float32), _LOWEST)


@triton.jit
def _load_centred(row_ptr, o_c, m_c, start, offset):
    """Return a block of a row less its mean start + offset, 0 beyond its end."""
    return tl.where(m_c, tl.load(row_ptr + o_c, mask=m_c, other=0).to(tl.float32) - start - offset, 0.0)


@triton.jit
def _deviation(row_ptr, classes, BLOCK_C: tl.constexpr):
    """Return the mean of a row, as its first logit and an offset, and the population standard deviation."""
    start = tl.load(row_ptr).to(tl.float32)
    total = 0.0
    for first in range(0, classes, BLOCK_C):
        o_c = first + tl.arange(0, BLOCK_C)
        total += tl.sum(_load_centred(row_ptr, o_c, o_c < classes, start, 0.0))
    offset = total / classes
    squares = 0.0
    for first in range(0, classes, BLOCK_C):
        o_c = first + tl.arange(0, BLOCK_C)
        b_centred = _load_centred(row_ptr, o_c, o_c < classes, start, offset)
        squares += tl.sum(b_centred * b_centred)
    return start, offset, tl.sqrt(squares / classes)


@triton.jit
def _log_ratio(b_s, b_t, m_c, student_max, teacher_max, student_base, teacher_base, inverse, rest, constant):
    """Return log(q / p) from both sides at the lower inverse temperature and the rest of the other's."""
    b_d = ((b_s - student_base) - (b_t - teacher_base)) * inverse - constant
    if rest is not None:
        b_rest = tl.where(rest < 0, b_t - teacher_max, b_s - student_max) * rest
        b_d += tl.where(m_c, b_rest, 0.0)
    return b_d


@triton.jit
def _excess(b_p, b_q, b_d):
    """Return q - p, as a series where they are close."""
    return tl.where(tl.abs(b_d) < _NEAR, b_p * (b_d + _exp_less_linear(b_d)), b_q - b_p)


@triton.jit
def _parallel(dot, classes, deviation):
    """Return the factor of the centred logits to subtract from a gradient; 0 if all logits are equal."""
    factor = dot / classes / tl.maximum(deviation, 1e-30) / (deviation + _EPSILON)
    return tl.where(deviation > 0, factor, 0.0)


@triton.jit
def _ce_gradient(b_s, o_c, label, student_max, sum_one, ce_weight, label_smoothing, classes):
    b_target = tl.where(o_c == label, 1 - label_smoothing, 0.0) + label_smoothing / classes
    return ce_weight * (tl.exp(b_s - student_max) / sum_one - b_target)


@triton.jit
def _exp_less_linear(b_d):
    """Return e^d - 1 - d for |d| < _NEAR, with a relative error below 2e-7."""
    b_series = b_d / 40320 + 1 / 5040
    b_series = b_series * b_d + 1 / 720
    b_series = b_series * b_d + 1 / 120
    b_series = b_series * b_d + 1 / 24
    b_series = b_series * b_d + 1 / 6
    b_series = b_series * b_d + 0.5
    return b_series * b_d * b_d


@triton.jit
def _kd_loss_count_kernel(
    labels_ptr,  # int64 [B]
    counted_ptr,  # out: the number of labels that are not ignored, at least 1; float32 scalar
    rows,
    ignore_index,
    BLOCK_B: tl.constexpr,
):
    b_number = tl.zeros([BLOCK_B], tl.int32)
    for first in range(0, rows, BLOCK_B):
        o_b = first + tl.arange(0, BLOCK_B)
        m_b = o_b < rows
        b_label = tl.load(labels_ptr + o_b, mask=m_b, other=0)
        b_number += (m_b & (b_label != ignore_index)).to(tl.int32)
    tl.store(counted_ptr, tl.maximum(tl.sum(b_number), 1).to(tl.float32))


@triton.jit
def _kd_loss_row_kernel(
    student_ptr,  # logits [B, C], rows student_stride elements apart
    teacher_ptr,  # logits [B, C], rows teacher_stride elements apart
    labels_ptr,  # int64 [B]; None: no cross-entropy
    counted_ptr,  # rows in the mean of the cross-entropy, float32 scalar; unused without labels
    row_losses_ptr,  # out: KL at the temperature and cross-entropy, float32 [2, B]
    grad_student_ptr,  # out: [B, C], dense; None: not wanted
    grad_teacher_ptr,  # out: [B, C], dense; None: not wanted
    student_stride,  # elements
    teacher_stride,  # elements
    rows,
    classes,
    inverse_temperature,  # 1 / T
    kl_weight,  # w_kl T / B, the factor of q - p in the gradient
    w_ce,
    label_smoothing,
    ignore_index,
    STANDARDIZE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    student_ptr += i_b * student_stride
    teacher_ptr += i_b * teacher_stride
    if grad_student_ptr is not None:
        grad_student_ptr += i_b * classes
    if grad_teacher_ptr is not None:
        grad_teacher_ptr += i_b * classes

    student_inverse = inverse_temperature
    teacher_inverse = inverse_temperature
    rest = None
    if STANDARDIZE:
        student_start, student_offset, student_deviation = _deviation(student_ptr, classes, BLOCK_C)
        teacher_start, teacher_offset, teacher_deviation = _deviation(teacher_ptr, classes, BLOCK_C)
        student_inverse = inverse_temperature / (student_deviation + _EPSILON)
        teacher_inverse = inverse_temperature / (teacher_deviation + _EPSILON)
        rest = student_inverse - teacher_inverse
    inverse = tl.minimum(student_inverse, teacher_inverse)

    # Sums of exp(logits / T) below running maxima, and the student's also at temperature 1.
    student_max = _LOWEST
    teacher_max = _LOWEST
    student_sum = 0.0
    teacher_sum = 0.0
    student_sum_one = 0.0
    for first in range(0, classes, BLOCK_C):
        o_c = first + tl.arange(0, BLOCK_C)
        m_c = o_c < classes
        b_s = _load_logits(student_ptr, o_c, m_c)
        b_t = _load_logits(teacher_ptr, o_c, m_c)
        new_student_max = tl.maximum(student_max, tl.max(b_s))
        new_teacher_max = tl.maximum(teacher_max, tl.max(b_t))
        student_sum *= tl.exp((student_max - new_student_max) * student_inverse)
        teacher_sum *= tl.exp((teacher_max - new_teacher_max) * teacher_inverse)
        student_sum += tl.sum(tl.exp((b_s - new_student_max) * student_inverse))
        teacher_sum += tl.sum(tl.exp((b_t - new_teacher_max) * teacher_inverse))
        if labels_ptr is not None:
            student_sum_one *= tl.exp(student_max - new_student_max)
            student_sum_one += tl.sum(tl.exp(b_s - new_student_max))
        student_max = new_student_max
        teacher_max = new_teacher_max

    ce_weight = 0.0
    label = -1
    if labels_ptr is not None:
        label = tl.load(labels_ptr + i_b)
        counts = label != ignore_index
        known = (label >= 0) & (label < classes)
        of_label = tl.load(student_ptr + label, mask=known, other=float("nan")).to(tl.float32) - student_max
        ce_weight = tl.where(counts, w_ce / tl.load(counted_ptr), 0.0)

    # log(q / p) is (s - t) / T plus a constant, and a rest if T differs between the sides. If the maxima are
    # close, the logits may be, too, and their plain difference is exact; else the maxima are subtracted
    # first, so that a large gap adds no rounding.
    close = tl.abs(student_max - teacher_max) * inverse < 1
    student_base = tl.where(close, 0.0, student_max)
    teacher_base = tl.where(close, 0.0, teacher_max)
    gap = (student_max - student_base) - (teacher_max - teacher_base)
    constant = tl.log(student_sum / teacher_sum) + gap * inverse

    # KL = Σ p (e^d - 1 - d) with d = log(q / p), whose terms are all positive.
    kl = 0.0
    below = 0.0
    student_dot = 0.0  # of (q - p) and the centred logits
    teacher_dot = 0.0  # of p log(p / q) and the centred logits
    teacher_dot_p = 0.0
    for first in range(0, classes, BLOCK_C):
        o_c = first + tl.arange(0, BLOCK_C)
        m_c = o_c < classes
        b_s = _load_logits(student_ptr, o_c, m_c)
        b_t = _load_logits(teacher_ptr, o_c, m_c)
        b_p = tl.exp((b_t - teacher_max) * teacher_inverse) / teacher_sum
        b_q = tl.exp((b_s - student_max) * student_inverse) / student_sum
        b_d = _log_ratio(
            b_s, b_t, m_c, student_max, teacher_max, student_base, teacher_base, inverse, rest, constant
        )
        b_series = _exp_less_linear(b_d)
        m_near = tl.abs(b_d) < _NEAR
        b_excess = tl.where(m_near, b_p * (b_d + b_series), b_q - b_p)
        kl += tl.sum(tl.where(m_near, b_p * b_series, tl.where(b_p == 0, b_q, b_excess - b_p * b_d)))
        if labels_ptr is not None:
            below += tl.sum(tl.where(m_c, b_s - student_max, 0.0))
        if STANDARDIZE:
            student_dot += tl.sum(
                b_excess * _load_centred(student_ptr, o_c, m_c, student_start, student_offset)
            )
            b_centred = _load_centred(teacher_ptr, o_c, m_c, teacher_start, teacher_offset)
            teacher_dot -= tl.sum(tl.where(b_p == 0, 0.0, b_p * b_d * b_centred))
            teacher_dot_p += tl.sum(b_p * b_centred)
        elif grad_student_ptr is not None:
            b_grad = kl_weight * b_excess
            if labels_ptr is not None:
                b_ce = _ce_gradient(
                    b_s, o_c, label, student_max, student_sum_one, ce_weight, label_smoothing, classes
                )
                b_grad += tl.where(counts, b_ce, 0.0)
            tl.store(grad_student_ptr + o_c, b_grad, mask=m_c)

    tl.store(row_losses_ptr + i_b, kl)
    if labels_ptr is not None:
        of_all = tl.where(label_smoothing > 0, label_smoothing / classes * below, 0.0)
        ce = tl.log(student_sum_one) - (1 - label_smoothing) * of_label - of_all
        tl.store(row_losses_ptr + rows + i_b, tl.where(counts, ce, 0.0))

    if STANDARDIZE and grad_student_ptr is not None:
        parallel = _parallel(student_dot, classes, student_deviation)
        weight = kl_weight / (student_deviation + _EPSILON)
        for first in range(0, classes, BLOCK_C):
            o_c = first + tl.arange(0, BLOCK_C)
            m_c = o_c < classes
            b_s = _load_logits(student_ptr, o_c, m_c)
            b_t = _load_logits(teacher_ptr, o_c, m_c)
            b_p = tl.exp((b_t - teacher_max) * teacher_inverse) / teacher_sum
            b_q = tl.exp((b_s - student_max) * student_inverse) / student_sum
            b_d = _log_ratio(
                b_s, b_t, m_c, student_max, teacher_max, student_base, teacher_base, inverse, rest, constant
            )
            b_centred = _load_centred(student_ptr, o_c, m_c, student_start, student_offset)
            b_grad = weight * (_excess(b_p, b_q, b_d) - b_centred * parallel)
            if labels_ptr is not None:
                b_ce = _ce_gradient(
                    b_s, o_c, label, student_max, student_sum_one, ce_weight, label_smoothing, classes
                )
                b_grad += tl.where(counts, b_ce, 0.0)
            tl.store(grad_student_ptr + o_c, b_grad, mask=m_c)

    if grad_teacher_ptr is not None:
        weight = kl_weight
        if STANDARDIZE:
            parallel = _parallel(teacher_dot - kl * teacher_dot_p, classes, teacher_deviation)
            weight = kl_weight / (teacher_deviation + _EPSILON)
        for first in range(0, classes, BLOCK_C):
            o_c = first + tl.arange(0, BLOCK_C)
            m_c = o_c < classes
            b_s = _load_logits(student_ptr, o_c, m_c)
            b_t = _load_logits(teacher_ptr, o_c, m_c)
            b_p = tl.exp((b_t - teacher_max) * teacher_inverse) / teacher_sum
            b_d = _log_ratio(
                b_s, b_t, m_c, student_max, teacher_max, student_base, teacher_base, inverse, rest, constant
            )
            b_grad = tl.where(b_p == 0, 0.0, weight * b_p * (-b_d - kl))
            if STANDARDIZE:
                b_centred = _load_centred(teacher_ptr, o_c, m_c, teacher_start, teacher_offset)
                b_grad -= weight * b_centred * parallel
            tl.store(grad_teacher_ptr + o_c, b_grad, mask=m_c)


@triton.jit
def _kd_loss_reduce_kernel(
    row_losses_ptr,  # KL and cross-entropy, float32 [2, B]
    counted_ptr,  # rows in the mean of the cross-entropy, float32 scalar; None: no cross-entropy
    total_ptr,  # out: float32 scalar
    kl_ptr,  # out: float32 scalar
    ce_ptr,  # out: float32 scalar
    rows,
    kl_scale,  # T² / B
    w_kl,
    w_ce,
    BLOCK_B: tl.constexpr,
):
    b_kl = tl.zeros([BLOCK_B], tl.float64)
    b_ce = tl.zeros([BLOCK_B], tl.float64)
    for first in range(0, rows, BLOCK_B):
        o_b = first + tl.arange(0, BLOCK_B)
        m_b = o_b < rows
        b_kl += tl.load(row_losses_ptr + o_b, mask=m_b, other=0.0)
        if counted_ptr is not None:
            b_ce += tl.load(row_losses_ptr + rows + o_b, mask=m_b, other=0.0)
    kl = tl.sum(b_kl) * kl_scale
    ce = tl.sum(b_ce)
    if counted_ptr is not None:
        ce /= tl.load(counted_ptr)
    tl.store(total_ptr, w_kl * kl + w_ce * ce)
    tl.store(kl_ptr, kl)
    tl.store(ce_ptr, ce)


def forward(
    student: Tensor, teacher: Tensor, labels: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    temperature, w_kl, w_ce, label_smoothing, ignore_index, standardize, *wanted = settings
    student_gradient, teacher_gradient = wanted
    rows, classes = student.shape
    total, kl, ce = (student.new_empty((), dtype=torch.float32) for _ in range(3))
    grad_student = empty_gradient(student, student_gradient)
    grad_teacher = empty_gradient(teacher, teacher_gradient)
    row_losses = student.new_empty((2, rows), dtype=torch.float32)
    counted = None if labels is None else student.new_empty((), dtype=torch.float32)
    labels = None if labels is None else labels.contiguous()
    block_c = min(triton.next_power_of_2(classes), MAX_BLOCK_C)
    with torch.cuda.device_of(student):
        if labels is not None:
            _kd_loss_count_kernel[(1,)](labels, counted, rows, ignore_index, BLOCK_B=BLOCK_B)
        _kd_loss_row_kernel[(rows,)](
            student,
            teacher,
            labels,
            counted,
            row_losses,
            grad_student if student_gradient else None,
            grad_teacher if teacher_gradient else None,
            student.stride(0),
            teacher.stride(0),
            rows,
            classes,
            1 / temperature,
            w_kl * temperature / rows,
            w_ce,
            label_smoothing,
            ignore_index,
            STANDARDIZE=standardize,
            BLOCK_C=block_c,
            num_warps=max(1, min(8, block_c // 256)),
        )
        _kd_loss_reduce_kernel[(1,)](
            row_losses,
            counted,
            total,
            kl,
            ce,
            rows,
            temperature * temperature / rows,
            w_kl,
            w_ce,
            BLOCK_B=BLOCK_B,
        )
    return total, kl, ce, grad_student, grad_teacher
