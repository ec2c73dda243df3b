"""How the Triton kernels cut a tensor into tiles."""

from dataclasses import dataclass
from functools import cache

import triton

from kernels.bn_stats.reference import Activation

NUM_WARPS = 4


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a tensor is cut, and how many programs share the tiles of a channel block."""

    channels_last: bool
    rows: int
    channels: int
    unit: int
    block_r: int
    block_c: int
    items: int
    programs: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.programs, triton.cdiv(self.channels, self.block_c)

    def arguments(self, eps: float, activation: Activation, negative_slope: float) -> dict[str, object]:
        return {
            "items": self.items,
            "rows": self.rows,
            "channels": self.channels,
            "eps": eps,
            "negative_slope": negative_slope,
            "ACTIVATION": activation,
            "CHANNELS_LAST": self.channels_last,
            "UNIT": self.unit,
            "BLOCK_R": self.block_r,
            "BLOCK_C": self.block_c,
            "num_warps": NUM_WARPS,
        }


@cache
def cut(channels_last: bool, batch: int, channels: int, spatial: int, tile: int, max_programs: int) -> Tiling:
    slabs, rows = (1, batch * spatial) if channels_last else (batch, spatial)
    contiguous = channels if channels_last else rows
    unit = min(contiguous & -contiguous, 16)
    tile = tile // 4 * min(unit, 4)  # without wide loads every element takes registers for its address
    if channels_last:
        block_c = _channel_block(channels, tile)
        block_r = tile // block_c
    else:
        block_r = min(triton.next_power_of_2(rows), tile // 4)
        block_c = min(triton.next_power_of_2(channels), tile // block_r)
    if contiguous * (block_r if channels_last else block_c) >= 2**31:
        raise ValueError("offsets in a tile have 32 bits, too few for tensors of this size")
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
    """Wide enough to fill memory sectors, and with as few channels that do not exist as that allows."""
    if channels <= 32:
        return min(triton.next_power_of_2(channels), tile)
    return min((min(block, tile) for block in (128, 64, 32)), key=lambda b: triton.cdiv(channels, b) * b)
