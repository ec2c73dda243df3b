"""Triton for NVIDIA GPUs; README.md has the derivation and the precision of the partial statistics."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.bn_stats.reference import BatchNorm
from kernels.bn_stats.tiling import Tiling, cut
from kernels.layout import is_channels_last

TILE = 2048  # elements of x that a program holds at a time, 16 per thread
NUM_WARPS = 4
INTERPRETED_PROGRAMS = 4
MAX_PROGRAMS = 1024  # per channel block, because one program combines their statistics

# As many as are resident with up to 80, 128 and 168 registers per thread.
PROGRAMS_PER_SM = 6
STATISTICS_PROGRAMS_PER_SM = 4
AFFINE_PROGRAMS_PER_SM = 3

# A tensor is cut into slabs of rows: channels_last memory is one slab of B·H·W rows of C adjacent channels,
# NCHW memory is B slabs of H·W rows whose channels are H·W elements apart. A tile is [BLOCK_R rows, BLOCK_C
# channels] of one slab; `item` numbers the tiles of a channel block. Program (p, c) takes items p, p + P, ...
# of channel block c.


@triton.jit
def _tile(item, rows, channels, CHANNELS_LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the offset of the first element, offsets from it and mask [BLOCK_R, BLOCK_C], number of rows."""
    i_c = tl.program_id(1)
    o_r = tl.arange(0, BLOCK_R)[:, None]
    o_c = tl.arange(0, BLOCK_C)[None, :]
    if CHANNELS_LAST:
        row = tl.cast(item, tl.int64) * BLOCK_R
        first = row * channels + i_c * BLOCK_C
        o_x = o_r * channels + o_c
    else:
        row_blocks = tl.cdiv(rows, BLOCK_R)
        slab = tl.cast(item // row_blocks, tl.int64)
        row = tl.cast(item % row_blocks, tl.int64) * BLOCK_R
        first = (slab * channels + i_c * BLOCK_C) * rows + row
        o_x = o_c * rows + o_r
    num_rows = tl.minimum(rows - row, BLOCK_R).to(tl.int32)
    m_x = (o_r < num_rows) & (i_c * BLOCK_C + o_c < channels)
    return first, o_x, m_x, num_rows


@triton.jit
def _fold(weight_ptr, bias_ptr, running_mean_ptr, running_var_ptr, o_c, m_c, eps):
    """Return scale, shift (bn(x) = x * scale + shift), running mean, 1 / standard deviation; [BLOCK_C]."""
    b_mean = tl.load(running_mean_ptr + o_c, mask=m_c, other=0).to(tl.float32)
    b_invstd = tl.rsqrt(tl.load(running_var_ptr + o_c, mask=m_c, other=1).to(tl.float32) + eps)
    b_scale = b_invstd
    if weight_ptr is not None:
        b_scale *= tl.load(weight_ptr + o_c, mask=m_c, other=0).to(tl.float32)
    b_shift = -b_mean * b_scale
    if bias_ptr is not None:
        b_shift += tl.load(bias_ptr + o_c, mask=m_c, other=0).to(tl.float32)
    return b_scale, b_shift, b_mean, b_invstd


@triton.jit
def _activate(b_z, negative_slope, ACTIVATION: tl.constexpr):
    """Return act(z); NaN stays NaN, as in torch."""
    if ACTIVATION == "relu":
        b_z = tl.where(b_z < 0, 0.0, b_z)
    elif ACTIVATION == "relu6":
        b_z = tl.where(b_z < 0, 0.0, tl.where(b_z > 6, 6.0, b_z))
    elif ACTIVATION == "leaky_relu":
        b_z = tl.where(b_z > 0, b_z, b_z * negative_slope)
    elif ACTIVATION == "silu":
        b_z = b_z * tl.sigmoid(b_z)
    return b_z


@triton.jit
def _activation_gradient(b_z, b_grad, negative_slope, ACTIVATION: tl.constexpr):
    """Return act'(z) * grad."""
    if ACTIVATION == "relu":
        b_grad = tl.where(b_z <= 0, 0.0, b_grad)
    elif ACTIVATION == "relu6":
        b_grad = tl.where((b_z <= 0) | (b_z >= 6), 0.0, b_grad)
    elif ACTIVATION == "leaky_relu":
        b_grad = tl.where(b_z > 0, b_grad, b_grad * negative_slope)
    elif ACTIVATION == "silu":
        b_sigmoid = tl.sigmoid(b_z)
        b_grad = b_grad * b_sigmoid * (1 + b_z * (1 - b_sigmoid))
    return b_grad


@triton.jit(do_not_specialize=["items", "rows", "channels"])
def _bn_stats_forward_kernel(
    x_ptr,  # [slabs, rows, C] in channels_last, else [slabs, C, rows]
    y_ptr,  # out: act(bn(x)), as x
    weight_ptr,  # [C]; None: 1
    bias_ptr,  # [C]; None: 0
    running_mean_ptr,  # [C]
    running_var_ptr,  # [C]
    counts_ptr,  # out: rows of each of the P programs, int32 [P]; None: no statistics
    partials_ptr,  # out: mean - running_mean of its rows, and their sum of squared deviations, [2, P, C]
    items,  # tiles of a channel block
    rows,  # of a slab
    channels,
    eps,
    negative_slope,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,  # divides the length of the contiguous axis
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_p, i_c, num_programs = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    if CHANNELS_LAST:
        channels = channels // UNIT * UNIT
    else:
        rows = rows // UNIT * UNIT
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    b_scale, b_shift, b_running_mean, _ = _fold(
        weight_ptr, bias_ptr, running_mean_ptr, running_var_ptr, o_c, m_c, eps
    )
    if counts_ptr is not None:
        first, o_x, m_x, num_rows = _tile(i_p, rows, channels, CHANNELS_LAST, BLOCK_R, BLOCK_C)
        b_x = tl.load(x_ptr + first + o_x, mask=m_x, other=0).to(tl.float32)
        b_center = tl.sum(b_x, 0) / num_rows
        count = 0
        b_sum = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        b_squares = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)

    for item in range(i_p, items, num_programs):
        first, o_x, m_x, num_rows = _tile(item, rows, channels, CHANNELS_LAST, BLOCK_R, BLOCK_C)
        b_x = tl.load(x_ptr + first + o_x, mask=m_x, other=0).to(tl.float32)
        b_y = _activate(b_x * b_scale[None, :] + b_shift[None, :], negative_slope, ACTIVATION)
        tl.store(y_ptr + first + o_x, b_y.to(y_ptr.dtype.element_ty), mask=m_x)
        if counts_ptr is not None:
            b_offset = tl.where(m_x, b_x - b_center[None, :], 0.0)
            count += num_rows
            b_sum += b_offset
            b_squares += b_offset * b_offset

    if counts_ptr is not None:
        # Rounding to nearest makes the mean of a constant channel exact and its deviations zero.
        b_total = tl.sum(b_sum, 0)
        b_mean = tl.div_rn(b_total, tl.cast(count, tl.float32))
        b_squared_deviations = tl.sum(b_squares, 0) - b_total * b_mean
        o_p = i_p * channels + o_c
        tl.store(counts_ptr + i_p, count)
        tl.store(partials_ptr + o_p, (b_center - b_running_mean) + b_mean, mask=m_c)
        tl.store(partials_ptr + num_programs * channels + o_p, b_squared_deviations, mask=m_c)


@triton.jit(do_not_specialize=["num_partials"])
def _bn_stats_combine_kernel(
    counts_ptr,  # rows of each partial, int32 [P]
    partials_ptr,  # mean - running_mean and sum of squared deviations of each, [2, P, C]
    running_var_ptr,  # [C]
    deviations_ptr,  # out: mean - running_mean and var - running_var of all rows, [2, C]
    num_partials,
    channels,
    BLOCK_P: tl.constexpr,  # at least num_partials
    BLOCK_C: tl.constexpr,
):
    i_c = tl.program_id(0)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    o_p = tl.arange(0, BLOCK_P)
    m_c, m_p = o_c < channels, o_p < num_partials
    o_x, m_x = o_p[:, None] * channels + o_c[None, :], m_p[:, None] & m_c[None, :]
    b_count = tl.load(counts_ptr + o_p, mask=m_p, other=0).to(tl.float32)[:, None]
    b_means = tl.load(partials_ptr + o_x, mask=m_x, other=0)
    b_squares = tl.load(partials_ptr + num_partials * channels + o_x, mask=m_x, other=0)

    total = tl.sum(b_count)
    b_mean = tl.sum(b_count * b_means, 0) / total
    b_offset = b_means - b_mean[None, :]
    b_var = tl.sum(b_squares + b_count * b_offset * b_offset, 0) / total
    b_running_var = tl.load(running_var_ptr + o_c, mask=m_c, other=0).to(tl.float32)
    tl.store(deviations_ptr + o_c, b_mean, mask=m_c)
    tl.store(deviations_ptr + channels + o_c, b_var - b_running_var, mask=m_c)


@triton.jit(do_not_specialize=["count"])
def _bn_stats_loss_kernel(
    deviations_ptr,  # mean - running_mean and var - running_var, [2, C]
    running_mean_ptr,  # [C]
    loss_ptr,  # out: sum of the norms of the deviations, scalar
    coefficients_ptr,  # out: a and b of d loss / d x = a + b * x, [2, C]
    count,  # rows of all slabs
    channels,
    BLOCK_C: tl.constexpr,
):
    b_mean_squares = tl.zeros([BLOCK_C], tl.float32)
    b_var_squares = tl.zeros([BLOCK_C], tl.float32)
    for first in range(0, channels, BLOCK_C):
        o_c = first + tl.arange(0, BLOCK_C)
        m_c = o_c < channels
        b_mean = tl.load(deviations_ptr + o_c, mask=m_c, other=0)
        b_var = tl.load(deviations_ptr + channels + o_c, mask=m_c, other=0)
        b_mean_squares += b_mean * b_mean
        b_var_squares += b_var * b_var
    mean_norm = tl.sqrt_rn(tl.sum(b_mean_squares))
    var_norm = tl.sqrt_rn(tl.sum(b_var_squares))
    tl.store(loss_ptr, mean_norm + var_norm)

    # If a norm is zero, so are its deviations: any divisor yields the zero gradient.
    mean_divisor = tl.where(mean_norm == 0, 1.0, mean_norm * count)
    var_divisor = tl.where(var_norm == 0, 1.0, var_norm * count)
    for first in range(0, channels, BLOCK_C):
        o_c = first + tl.arange(0, BLOCK_C)
        m_c = o_c < channels
        b_mean = tl.load(deviations_ptr + o_c, mask=m_c, other=0)
        b_b = 2 * tl.load(deviations_ptr + channels + o_c, mask=m_c, other=0) / var_divisor
        b_running_mean = tl.load(running_mean_ptr + o_c, mask=m_c, other=0).to(tl.float32)
        tl.store(coefficients_ptr + o_c, b_mean / mean_divisor - b_b * (b_running_mean + b_mean), mask=m_c)
        tl.store(coefficients_ptr + channels + o_c, b_b, mask=m_c)


@triton.jit(do_not_specialize=["items", "rows", "channels"])
def _bn_stats_backward_kernel(
    grad_y_ptr,  # as x
    grad_loss_ptr,  # scalar
    x_ptr,  # [slabs, rows, C] in channels_last, else [slabs, C, rows]
    weight_ptr,  # [C]; None: 1
    bias_ptr,  # [C]; None: 0
    running_mean_ptr,  # [C]
    running_var_ptr,  # [C]
    coefficients_ptr,  # a and b of d loss / d x = a + b * x, [2, C]; None: no statistics
    grad_x_ptr,  # out: as x
    partials_ptr,  # out: gradients of weight and bias from each program's rows, [2, P, C]; None: not wanted
    items,  # tiles of a channel block
    rows,  # of a slab
    channels,
    eps,
    negative_slope,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,  # divides the length of the contiguous axis
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_p, i_c, num_programs = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    if CHANNELS_LAST:
        channels = channels // UNIT * UNIT
    else:
        rows = rows // UNIT * UNIT
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    b_scale, b_shift, b_running_mean, b_invstd = _fold(
        weight_ptr, bias_ptr, running_mean_ptr, running_var_ptr, o_c, m_c, eps
    )
    if coefficients_ptr is not None:
        grad_loss = tl.load(grad_loss_ptr).to(tl.float32)
        b_a = grad_loss * tl.load(coefficients_ptr + o_c, mask=m_c, other=0)
        b_b = grad_loss * tl.load(coefficients_ptr + channels + o_c, mask=m_c, other=0)
    if partials_ptr is not None:
        b_grad_weight = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        b_grad_bias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)

    for item in range(i_p, items, num_programs):
        first, o_x, m_x, _ = _tile(item, rows, channels, CHANNELS_LAST, BLOCK_R, BLOCK_C)
        b_x = tl.load(x_ptr + first + o_x, mask=m_x, other=0).to(tl.float32)
        b_grad_y = tl.load(grad_y_ptr + first + o_x, mask=m_x, other=0).to(tl.float32)
        b_z = b_x * b_scale[None, :] + b_shift[None, :]
        b_grad_z = _activation_gradient(b_z, b_grad_y, negative_slope, ACTIVATION)
        b_grad_x = b_grad_z * b_scale[None, :]
        if coefficients_ptr is not None:
            b_grad_x += b_a[None, :] + b_b[None, :] * b_x
        tl.store(grad_x_ptr + first + o_x, b_grad_x.to(grad_x_ptr.dtype.element_ty), mask=m_x)
        if partials_ptr is not None:
            b_grad_weight += b_grad_z * (b_x - b_running_mean[None, :])
            b_grad_bias += b_grad_z

    if partials_ptr is not None:
        o_p = i_p * channels + o_c
        tl.store(partials_ptr + o_p, tl.sum(b_grad_weight, 0) * b_invstd, mask=m_c)
        tl.store(partials_ptr + num_programs * channels + o_p, tl.sum(b_grad_bias, 0), mask=m_c)


def forward(x: Tensor, norm: BatchNorm, statistics: bool) -> tuple[Tensor, Tensor, Tensor]:
    norm = norm.converted(Tensor.contiguous)
    tiling = _tiling(x, STATISTICS_PROGRAMS_PER_SM if statistics else PROGRAMS_PER_SM)
    y = torch.empty_like(x)
    counts = x.new_empty(tiling.programs, dtype=torch.int32) if statistics else None
    partials = x.new_empty((2, tiling.programs, tiling.channels), dtype=torch.float32) if statistics else None
    with torch.cuda.device_of(x):
        _bn_stats_forward_kernel[tiling.grid](
            x, y, *norm[:4], counts, partials, **_sizes(tiling, norm), num_warps=NUM_WARPS
        )
        if counts is not None and partials is not None:
            return y, *_loss(counts, partials, norm, x.numel() // tiling.channels)
    zeros = x.new_zeros(1 + 2 * tiling.channels, dtype=torch.float32)
    return y, zeros[0], zeros[1:].view(2, -1)


def backward(
    grad_y: Tensor, grad_loss: Tensor | None, x: Tensor, norm: BatchNorm, coefficients: Tensor, affine: bool
) -> tuple[Tensor, Tensor, Tensor]:
    assert grad_y.dtype == x.dtype
    assert is_channels_last(grad_y) == is_channels_last(x)
    norm = norm.converted(Tensor.contiguous)
    tiling = _tiling(x, AFFINE_PROGRAMS_PER_SM if affine else PROGRAMS_PER_SM)
    grad_x = torch.empty_like(x)
    partials = x.new_empty((2, tiling.programs, tiling.channels if affine else 0), dtype=torch.float32)
    with torch.cuda.device_of(x):
        _bn_stats_backward_kernel[tiling.grid](
            grad_y,
            grad_loss,
            x,
            *norm[:4],
            coefficients if grad_loss is not None else None,
            grad_x,
            partials if affine else None,
            **_sizes(tiling, norm),
            num_warps=NUM_WARPS,
        )
    return grad_x, partials[0].sum(0), partials[1].sum(0)


def _loss(counts: Tensor, partials: Tensor, norm: BatchNorm, count: int) -> tuple[Tensor, Tensor]:
    """Return the loss and the coefficients [2, C] from the partial statistics of disjoint rows."""
    _, num_partials, channels = partials.shape
    block_p = triton.next_power_of_2(num_partials)
    block_c = min(triton.next_power_of_2(channels), max(1, 2 * TILE // block_p), 64)
    deviations = partials.new_empty((2, channels))
    _bn_stats_combine_kernel[(triton.cdiv(channels, block_c),)](
        counts,
        partials,
        norm.running_var,
        deviations,
        num_partials,
        channels,
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        num_warps=NUM_WARPS,
    )
    loss, coefficients = partials.new_empty(()), partials.new_empty((2, channels))
    _bn_stats_loss_kernel[(1,)](
        deviations,
        norm.running_mean,
        loss,
        coefficients,
        count,
        channels,
        BLOCK_C=min(triton.next_power_of_2(channels), 1024),
        num_warps=NUM_WARPS,
    )
    return loss, coefficients


def _sizes(tiling: Tiling, norm: BatchNorm) -> dict[str, object]:
    """Return the keyword arguments that the forward and the backward kernel share."""
    return {
        "items": tiling.items,
        "rows": tiling.rows,
        "channels": tiling.channels,
        "eps": norm.eps,
        "negative_slope": norm.negative_slope,
        "ACTIVATION": norm.activation,
        "CHANNELS_LAST": tiling.channels_last,
        "UNIT": tiling.unit,
        "BLOCK_R": tiling.block_r,
        "BLOCK_C": tiling.block_c,
    }


def _tiling(x: Tensor, programs_per_sm: int) -> Tiling:
    batch, channels, height, width = x.shape
    max_programs = _max_programs(x.device, programs_per_sm)
    return cut(is_channels_last(x), batch, channels, height * width, TILE, max_programs)


def _max_programs(device: torch.device, programs_per_sm: int) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return min(programs_per_sm * _multiprocessors(device), MAX_PROGRAMS)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
