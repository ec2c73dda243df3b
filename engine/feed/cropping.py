"""Decoded images as a draw shows them."""

import torch
from torch import Tensor

from engine.feed.sampler import Draw
from kernels.crop_flip import crop_flip


def cropped(images: Tensor, draw: Draw, *, pad: int, threads: int | None = None) -> Tensor:
    """float32 [B, H, W, 3] in [0, 1] of images uint8 [B, H, W, 3], on their device.

    `pad` of the draw's order; `threads` as of `crop_flip`.
    """
    top, left, flip = (
        torch.from_numpy(column).to(images.device) for column in (draw.top, draw.left, draw.flip)
    )
    return crop_flip(images, top.long(), left.long(), flip, pad=pad, threads=threads)
