"""One program a row, then one for the sums over rows: no atomics, the same bits every time."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.kd_loss.reference import empty_gradient

MAX_BLOCK = 4096  # classes that a program holds in registers; longer rows are read again, from the cache
ROWS_BLOCK = 1024

LOWEST = tl.constexpr(-3.4e38)  # not -inf, of which differences are not numbers
NEAR = tl.constexpr(0.5)  # |log(q / p)| below which KL terms are summed as a series


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
    rows, classes = student.shape
    total, kl, ce = (student.new_empty((), dtype=torch.float32) for _ in range(3))
    grad_student = empty_gradient(student, student_gradient)
    grad_teacher = empty_gradient(teacher, teacher_gradient)
    row_losses = student.new_empty((2, rows), dtype=torch.float32)
    counted = student.new_empty((), dtype=torch.float32)
    labels = labels if labels is None else labels.contiguous()
    block = min(triton.next_power_of_2(classes), MAX_BLOCK)
    with torch.cuda.device_of(student):
        if labels is not None:
            count_kernel[(1,)](labels, counted, rows, ignore_index, BLOCK=ROWS_BLOCK)
        row_kernel[(rows,)](
            student,
            teacher,
            labels,
            counted,
            row_losses,
            grad_student,
            grad_teacher,
            student.stride(0),
            teacher.stride(0),
            rows,
            classes,
            1 / temperature,
            w_kl * temperature / rows,
            w_ce,
            label_smoothing,
            ignore_index,
            WITH_CE=labels is not None,
            STUDENT_GRADIENT=student_gradient,
            TEACHER_GRADIENT=teacher_gradient,
            BLOCK=block,
            num_warps=max(1, min(8, block // 256)),
        )
        reduce_kernel[(1,)](
            row_losses,
            counted,
            total,
            kl,
            ce,
            rows,
            temperature * temperature / rows,
            w_kl,
            w_ce,
            WITH_CE=labels is not None,
            BLOCK=ROWS_BLOCK,
        )
    return total, kl, ce, grad_student, grad_teacher


@triton.jit
def count_kernel(
    labels_ptr,  # int64 [rows]
    counted_ptr,  # float32 scalar out: labels that are not ignored, but at least 1
    rows,
    ignore_index,
    BLOCK: tl.constexpr,
):
    number = tl.zeros([BLOCK], tl.int32)
    for start in range(0, rows, BLOCK):
        o_row = start + tl.arange(0, BLOCK)
        inside = o_row < rows
        label = tl.load(labels_ptr + o_row, mask=inside, other=0)
        number += (inside & (label != ignore_index)).to(tl.int32)
    tl.store(counted_ptr, tl.maximum(tl.sum(number), 1).to(tl.float32))


@triton.jit
def row_kernel(
    student_ptr,  # logits [rows, classes], rows student_stride elements apart
    teacher_ptr,  # logits [rows, classes], rows teacher_stride elements apart
    labels_ptr,  # int64 [rows]; unused without WITH_CE
    counted_ptr,  # float32 scalar, rows in the mean of the cross-entropy; unused without WITH_CE
    row_losses_ptr,  # float32 [2, rows] out: KL at the temperature, cross-entropy
    grad_student_ptr,  # [rows, classes] out, dense; unused without STUDENT_GRADIENT
    grad_teacher_ptr,  # [rows, classes] out, dense; unused without TEACHER_GRADIENT
    student_stride,  # elements
    teacher_stride,  # elements
    rows,
    classes,
    inverse_temperature,  # 1 / T
    kl_weight,  # w_kl T / rows: of q - p in the gradient
    w_ce,
    label_smoothing,
    ignore_index,
    WITH_CE: tl.constexpr,
    STUDENT_GRADIENT: tl.constexpr,
    TEACHER_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student_ptr += row * student_stride
    teacher_ptr += row * teacher_stride
    grad_student_ptr += row * classes
    grad_teacher_ptr += row * classes

    # exp(logits / T), and the student's also at temperature 1, summed below running maxima
    student_max = LOWEST
    teacher_max = LOWEST
    student_sum = 0.0
    teacher_sum = 0.0
    student_sum_one = 0.0
    for start in range(0, classes, BLOCK):
        o_class = start + tl.arange(0, BLOCK)
        s = load_logits(student_ptr, o_class, classes)
        t = load_logits(teacher_ptr, o_class, classes)
        new_student_max = tl.maximum(student_max, tl.max(s))
        new_teacher_max = tl.maximum(teacher_max, tl.max(t))
        student_sum *= tl.exp((student_max - new_student_max) * inverse_temperature)
        teacher_sum *= tl.exp((teacher_max - new_teacher_max) * inverse_temperature)
        student_sum += tl.sum(tl.exp((s - new_student_max) * inverse_temperature))
        teacher_sum += tl.sum(tl.exp((t - new_teacher_max) * inverse_temperature))
        if WITH_CE:
            student_sum_one *= tl.exp(student_max - new_student_max)
            student_sum_one += tl.sum(tl.exp(s - new_student_max))
        student_max = new_student_max
        teacher_max = new_teacher_max

    ce_weight = 0.0
    label = -1
    if WITH_CE:
        label = tl.load(labels_ptr + row)
        counts = label != ignore_index
        known = (label >= 0) & (label < classes)
        of_label = tl.load(student_ptr + label, mask=known, other=float("nan")).to(tl.float32) - student_max
        ce_weight = tl.where(counts, w_ce / tl.load(counted_ptr), 0.0)

    # log(q / p) is (s - t) / T and a constant. Where the maxima are alike, so may be the logits, and their
    # plain difference is exact; else the maxima are taken off first, lest a large gap be rounded with it.
    alike = tl.abs(student_max - teacher_max) * inverse_temperature < 1
    student_base = tl.where(alike, 0.0, student_max)
    teacher_base = tl.where(alike, 0.0, teacher_max)
    gap = (student_max - student_base) - (teacher_max - teacher_base)
    constant = tl.log(student_sum / teacher_sum) + gap * inverse_temperature

    # KL = Σ p (e^d - 1 - d) with d = log(q / p), whose terms are all positive
    kl = 0.0
    below = 0.0
    for start in range(0, classes, BLOCK):
        o_class = start + tl.arange(0, BLOCK)
        inside = o_class < classes
        s = load_logits(student_ptr, o_class, classes)
        t = load_logits(teacher_ptr, o_class, classes)
        p = tl.exp((t - teacher_max) * inverse_temperature) / teacher_sum
        q = tl.exp((s - student_max) * inverse_temperature) / student_sum
        d = ((s - student_base) - (t - teacher_base)) * inverse_temperature - constant
        series = exp_less_linear(d)
        near = tl.abs(d) < NEAR
        excess = tl.where(near, p * (d + series), q - p)
        kl += tl.sum(tl.where(near, p * series, tl.where(p == 0, q, excess - p * d)))
        if WITH_CE:
            below += tl.sum(tl.where(inside, s - student_max, 0.0))
        if STUDENT_GRADIENT:
            gradient = kl_weight * excess
            if WITH_CE:
                target = tl.where(o_class == label, 1 - label_smoothing, 0.0) + label_smoothing / classes
                gradient += tl.where(
                    counts, ce_weight * (tl.exp(s - student_max) / student_sum_one - target), 0.0
                )
            tl.store(grad_student_ptr + o_class, gradient, mask=inside)

    tl.store(row_losses_ptr + row, kl)
    if WITH_CE:
        of_all = tl.where(label_smoothing > 0, label_smoothing / classes * below, 0.0)
        ce = tl.log(student_sum_one) - (1 - label_smoothing) * of_label - of_all
        tl.store(row_losses_ptr + rows + row, tl.where(counts, ce, 0.0))

    if TEACHER_GRADIENT:
        for start in range(0, classes, BLOCK):
            o_class = start + tl.arange(0, BLOCK)
            inside = o_class < classes
            s = load_logits(student_ptr, o_class, classes)
            t = load_logits(teacher_ptr, o_class, classes)
            p = tl.exp((t - teacher_max) * inverse_temperature) / teacher_sum
            d = ((s - student_base) - (t - teacher_base)) * inverse_temperature - constant
            gradient = tl.where(p == 0, 0.0, kl_weight * p * (-d - kl))
            tl.store(grad_teacher_ptr + o_class, gradient, mask=inside)


@triton.jit
def load_logits(ptr, o_class, classes):
    """Those of one row in float32, LOWEST beyond its end."""
    inside = o_class < classes
    return tl.where(inside, tl.load(ptr + o_class, mask=inside, other=0).to(tl.float32), LOWEST)


@triton.jit
def exp_less_linear(d):
    """e^d - 1 - d for |d| < NEAR, with a relative error below 2e-7."""
    series = d / 40320 + 1 / 5040
    series = series * d + 1 / 720
    series = series * d + 1 / 120
    series = series * d + 1 / 24
    series = series * d + 1 / 6
    series = series * d + 0.5
    return series * d * d


@triton.jit
def reduce_kernel(
    row_losses_ptr,  # float32 [2, rows]: KL, cross-entropy; the latter unused without WITH_CE
    counted_ptr,  # float32 scalar, rows in the mean of the cross-entropy; unused without WITH_CE
    total_ptr,  # float32 scalar out
    kl_ptr,  # float32 scalar out
    ce_ptr,  # float32 scalar out
    rows,
    kl_scale,  # T² / rows
    w_kl,
    w_ce,
    WITH_CE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    kl_sums = tl.zeros([BLOCK], tl.float64)
    ce_sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, rows, BLOCK):
        o_row = start + tl.arange(0, BLOCK)
        kl_sums += tl.load(row_losses_ptr + o_row, mask=o_row < rows, other=0.0)
        if WITH_CE:
            ce_sums += tl.load(row_losses_ptr + rows + o_row, mask=o_row < rows, other=0.0)
    kl = tl.sum(kl_sums) * kl_scale
    ce = tl.sum(ce_sums)
    if WITH_CE:
        ce /= tl.load(counted_ptr)
    tl.store(total_ptr, w_kl * kl + w_ce * ce)
    tl.store(kl_ptr, kl)
    tl.store(ce_ptr, ce)
