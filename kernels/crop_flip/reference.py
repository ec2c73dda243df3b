"""Plain torch: the ground truth for the kernels, and crop and flip with a gradient for all other tensors."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = 1 / 255


class Windows(NamedTuple):
    """The part of each zero-padded image to show."""

    top: Tensor
    """int64 [B] in [0, 2 * pad]: the first row"""
    left: Tensor
    """int64 [B] in [0, 2 * pad]: the first column"""
    flip: Tensor
    """bool [B]: whether the window is mirrored"""
    pad: int
    """Pixels of padding on each side"""


def crop_flip_nchw(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, *, pad: int = 4) -> Tensor:
    """Zero-pad by `pad`, crop image i back to its size at (top[i], left[i]), and mirror it if flip[i].

    Args:
        images: [B, C, H, W], of any dtype; gradients of any order flow to it.
        top, left: int64 [B] in [0, 2 * pad].
        flip: bool [B].

    Returns:
        [B, C, H, W] in the dtype of the images, in channels_last memory.
    """
    device = images.device
    cropped: Tensor = _CropFlip.apply(images, top.to(device), left.to(device), flip.to(device), pad)
    return cropped


def random_crop_flip(images: Tensor, generator: torch.Generator, *, pad: int = 4) -> Tensor:
    """Apply `crop_flip_nchw` with `draw_crops`, one draw per image."""
    return crop_flip_nchw(images, *draw_crops(images.shape[0], generator, pad=pad), pad=pad)


def draw_crops(
    batch: int, generator: torch.Generator, *, pad: int = 4, flip: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw top, left int64 [batch] and flip bool [batch] uniformly from a CPU generator.

    Without `flip` no image is mirrored, and top and left are the same.
    """
    top, left = torch.randint(0, 2 * pad + 1, (2, batch), generator=generator)
    return top, left, (torch.rand(batch, generator=generator) < 0.5) & flip


def forward(images: Tensor, windows: Windows, _threads: int | None) -> Tensor:
    """Return float32 [B, H, W, 3] of uint8 images [B, H, W, 3]."""
    return _gather(images, windows).float() * SCALE


def check_offsets(windows: Windows) -> None:
    """Raise ValueError if an offset is out of range. On a GPU this would wait for the device."""
    for name, values in (("top", windows.top), ("left", windows.left)):
        if len(values) and (values.min() < 0 or values.max() > 2 * windows.pad):
            raise ValueError(f"{name} must lie between 0 and {2 * windows.pad}, twice the padding")


class _CropFlip(torch.autograd.Function):
    """Crop and flip with a gradient.

    No pixel is read twice, so the gradient is a crop, too, offset by what was cut off on the other side.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
        ctx.save_for_backward(top, left, flip)
        ctx.pad = pad
        return _gather(images.permute(0, 2, 3, 1), Windows(top, left, flip, pad)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        top, left, flip = ctx.saved_tensors
        across = 2 * ctx.pad
        mirrored = torch.where(flip, left, across - left)
        windows = Windows(across - top, mirrored, flip, ctx.pad)
        return _gather(grad.permute(0, 2, 3, 1), windows).permute(0, 3, 1, 2), None, None, None, None


def _gather(images: Tensor, windows: Windows) -> Tensor:
    """Return what the windows show of the images; both are [B, H, W, C], the result contiguous."""
    top, left, flip, pad = windows
    batch, height, width, _ = images.shape
    device = images.device
    rows = top[:, None] + torch.arange(height, device=device)  # [B, H]
    columns = torch.arange(width, device=device).expand(batch, width)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + left[:, None]
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))  # [B, H + 2p, W + 2p, C]
    index = torch.arange(batch, device=device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]]
