"""Triton for NVIDIA GPUs: each program takes a few rows of one image; README.md has the bytes moved."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.crop_flip.reference import SCALE, Windows

TILE = 2048  # elements that a program holds at a time, 16 per thread
NUM_WARPS = 4

_SCALE = tl.constexpr(SCALE)

# An image is H rows of 3 W elements. A tile is [BLOCK_R rows, BLOCK_E elements] of one image. A program takes
# all tiles of BLOCK_R rows of one image.


@triton.jit
def _crop_flip_forward_kernel(
    images_ptr,  # uint8 [B, H, W, 3]
    top_ptr,  # int64 [B]
    left_ptr,  # int64 [B]
    flip_ptr,  # bool [B]
    out_ptr,  # out: float32 [B, H, W, 3]
    height,
    width,
    pad,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    row_blocks = tl.cdiv(height, BLOCK_R)
    i_b = (tl.program_id(0) // row_blocks).to(tl.int64)
    i_r = tl.program_id(0) % row_blocks
    top = tl.load(top_ptr + i_b)
    left = tl.load(left_ptr + i_b)
    flip = tl.load(flip_ptr + i_b)
    inside = (top >= 0) & (top <= 2 * pad) & (left >= 0) & (left <= 2 * pad)
    shift_r = (top - pad).to(tl.int32)
    shift_c = (left - pad).to(tl.int32)

    first_r = i_r * BLOCK_R
    images_ptr += (i_b * height + (first_r + shift_r)) * (3 * width)
    out_ptr += (i_b * height + first_r) * (3 * width)
    o_r = tl.arange(0, BLOCK_R)[:, None]
    m_r = first_r + o_r < height
    m_from_r = inside & (first_r + o_r + shift_r >= 0) & (first_r + o_r + shift_r < height)
    for first in range(0, 3 * width, BLOCK_E):
        o_e = first + tl.arange(0, BLOCK_E)[None, :]
        o_c = o_e // 3
        o_from_c = tl.where(flip, width - 1 - o_c, o_c) + shift_c
        m_e = o_e < 3 * width
        m_x = m_from_r & m_e & (o_from_c >= 0) & (o_from_c < width)
        o_x = o_r * (3 * width) + o_from_c * 3 + o_e % 3
        b_x = tl.load(images_ptr + o_x, mask=m_x, other=0).to(tl.float32)
        tl.store(out_ptr + o_r * (3 * width) + o_e, b_x * _SCALE, mask=m_r & m_e)


def forward(images: Tensor, windows: Windows, _threads: int | None) -> Tensor:
    batch, height, width, _ = images.shape
    out = torch.empty_like(images, dtype=torch.float32)
    block_r, block_e = _blocks(height, width)
    with torch.cuda.device_of(images):
        _crop_flip_forward_kernel[(batch * triton.cdiv(height, block_r),)](
            images,
            windows.top,
            windows.left,
            windows.flip,
            out,
            height,
            width,
            windows.pad,
            BLOCK_R=block_r,
            BLOCK_E=block_e,
            num_warps=NUM_WARPS,
        )
    return out


def _blocks(height: int, width: int) -> tuple[int, int]:
    """Return the rows of a tile, and the elements of each."""
    block_e = min(triton.next_power_of_2(3 * width), TILE // 2)
    return min(triton.next_power_of_2(height), TILE // block_e), block_e
