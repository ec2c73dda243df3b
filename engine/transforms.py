"""Random crop and flip over a batch, differentiable, with every draw made by the caller's generator."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, *, pad: int = 4) -> Tensor:
    """Zero-pad by `pad`, crop image i back to its size at (top[i], left[i]), mirror it where flip[i].

    images [B, C, H, W], any dtype; top, left int64 [B] in [0, 2 * pad]; flip bool [B].
    Returns [B, C, H, W] in channels_last memory.
    """
    device = images.device
    cropped: Tensor = _CropFlip.apply(images, top.to(device), left.to(device), flip.to(device), pad)
    return cropped


class _CropFlip(torch.autograd.Function):
    """No pixel is read twice, so the gradient is a crop too: by what was cut off on the other side."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
        ctx.save_for_backward(top, left, flip)
        ctx.pad = pad
        return _gather(images, top, left, flip, pad)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        top, left, flip = ctx.saved_tensors
        across = 2 * ctx.pad
        mirrored = torch.where(flip, left, across - left)
        return _gather(grad, across - top, mirrored, flip, ctx.pad), None, None, None, None


def _gather(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
    batch, _, height, width = images.shape
    device = images.device
    rows = top[:, None] + torch.arange(height, device=device)  # [B, H]
    columns = torch.arange(width, device=device).expand(batch, width)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + left[:, None]
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)  # [B, H + 2p, W + 2p, C]
    index = torch.arange(batch, device=device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def draw_crops(
    batch: int, generator: torch.Generator, *, pad: int = 4, flip: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """top, left int64 [batch] and flip bool [batch] for `crop_flip`, uniform, from a CPU generator.

    Without `flip` none is mirrored, and all other draws are the same.
    """
    top, left = torch.randint(0, 2 * pad + 1, (2, batch), generator=generator)
    return top, left, (torch.rand(batch, generator=generator) < 0.5) & flip


def random_crop_flip(images: Tensor, generator: torch.Generator, *, pad: int = 4) -> Tensor:
    """`crop_flip` with offsets and flips drawn uniformly, one a image, from a CPU generator."""
    return crop_flip(images, *draw_crops(images.shape[0], generator, pad=pad), pad=pad)
