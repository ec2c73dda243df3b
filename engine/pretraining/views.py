"""Strongly augmented views, which teach an encoder of clean images to see the class of an inverted one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.crop_flip import random_crop_flip


def strong_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return one random view of each image: crop, flip, blur, contrast, offset, noise and cut-out.

    images uint8 [B, 3, 32, 32], grey in RGB -> float32 of the same shape in [0, 1], grey in RGB.
    """
    x = random_crop_flip(images[:, :1], generator).float() / 255  # [B, 1, H, W]
    batch = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(batch, 1, 1, 1).uniform_(low, high, generator=generator)

    def chosen(probability: float) -> Tensor:
        return torch.rand(batch, 1, 1, 1, generator=generator) < probability

    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16)[None, None]
    x = torch.where(chosen(0.4), F.conv2d(F.pad(x, (1, 1, 1, 1), "replicate"), kernel), x)
    x = x * uniform(0.4, 1.6) + torch.where(chosen(0.5), uniform(-0.2, 0.3), torch.zeros(()))
    noise = torch.randn(x.shape, generator=generator)
    x = x + noise * torch.where(chosen(0.6), uniform(0.0, 0.25), torch.zeros(()))
    return _cut_out(x, generator).clamp(0, 1).expand(-1, 3, -1, -1)


def _cut_out(x: Tensor, generator: torch.Generator, size: int = 10) -> Tensor:
    """Fill a square of `size` pixels with a random level in half of the images."""
    batch, _, height, width = x.shape
    top = torch.randint(0, height - size, (batch, 1, 1), generator=generator)
    left = torch.randint(0, width - size, (batch, 1, 1), generator=generator)
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    inside &= torch.rand(batch, 1, 1, generator=generator) < 0.5
    return torch.where(inside[:, None], torch.rand(batch, 1, 1, 1, generator=generator), x)
