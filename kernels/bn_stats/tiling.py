"""Cut a tensor into the tiles of the Triton kernels."""

from dataclasses import dataclass
from functools import cache

import triton


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The tiles of a tensor, and the number of programs that share the tiles of a channel block."""

    channels_last: bool
    rows: int
    """Rows of a slab; see triton.py"""
    channels: int
    unit: int
    """A power of two, at most 16, that divides the length of the contiguous axis"""
    block_r: int
    """Rows of a tile"""
    block_c: int
    """Channels of a tile"""
    items: int
    """Tiles of a channel block"""
    programs: int
    """Programs of a channel block"""

    @property
    def grid(self) -> tuple[int, int]:
        return self.programs, triton.cdiv(self.channels, self.block_c)


@cache
def cut(channels_last: bool, batch: int, channels: int, spatial: int, tile: int, max_programs: int) -> Tiling:
    """Return tiles of at most `tile` elements for at most `max_programs` programs, or one per channel block.

    Raises ValueError if the offsets within a tile do not fit into 32 bits.
    """
    slabs, rows = (1, batch * spatial) if channels_last else (batch, spatial)
    contiguous = channels if channels_last else rows
    unit = min(contiguous & -contiguous, 16)
    tile = tile // 4 * min(unit, 4)  # without wide loads, every element takes registers for its address
    if channels_last:
        block_c = _channel_block(channels, tile)
        block_r = tile // block_c
    else:
        block_r = min(triton.next_power_of_2(rows), tile // 4)
        block_c = min(triton.next_power_of_2(channels), tile // block_r)
    if contiguous * (block_r if channels_last else block_c) >= 2**31:
        raise ValueError(
            f"x has [B, C, H * W] = {[batch, channels, spatial]}, but offsets within a tile have 32 bits; "
            "call the op inside use_backend('torch')"
        )
    items = slabs * triton.cdiv(rows, block_r)
    items_each = triton.cdiv(items, max(1, max_programs // triton.cdiv(channels, block_c)))
    return Tiling(
        channels_last=channels_last,
        rows=rows,
        channels=channels,
        unit=unit,
        block_r=block_r,
        block_c=block_c,
        items=items,
        programs=triton.cdiv(items, items_each),
    )


def _channel_block(channels: int, tile: int) -> int:
    """Return a width that fills memory sectors and, given that, covers the fewest channels in excess."""
    if channels <= 32:
        return min(triton.next_power_of_2(channels), tile)
    return min((min(block, tile) for block in (128, 64, 32)), key=lambda b: triton.cdiv(channels, b) * b)
