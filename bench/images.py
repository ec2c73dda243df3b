"""Random images, as the engine holds them and as PIL does."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from engine.stages.batch import ImageBatch


def sources(count: int, size: int, *, variations: int) -> ImageBatch:
    """Smooth random images whose keys leave room for so many variations of each."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=draw)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return ImageBatch(
        images=(smooth * 255).round().to(torch.uint8),
        labels=torch.zeros(count, dtype=torch.int64),
        keys=torch.arange(count) * (variations + 1),
        parents=torch.full((count,), -1),
        seeds=torch.arange(count),
    )


def noisy_copies(of: ImageBatch, copies: int) -> ImageBatch:
    """`copies` of each image, source by source, each with more noise than the one before."""
    draw = torch.Generator().manual_seed(1)
    rows = torch.arange(len(of)).repeat_interleave(copies)
    amount = torch.arange(1, len(rows) + 1).view(-1, 1, 1, 1) / len(rows)
    images = of.images[rows]
    noise = 255 * torch.rand(images.shape, generator=draw)
    mixed = images * (1 - amount) + noise * amount
    keys = of.keys[rows] + 1 + torch.arange(copies).repeat(len(of))
    return ImageBatch(
        images=mixed.round().to(torch.uint8),
        labels=of.labels[rows],
        keys=keys,
        parents=of.keys[rows],
        seeds=keys,
    )


def to_pil(images: Tensor) -> list[Image.Image]:
    """uint8 [B, 3, H, W] -> B images."""
    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy()]


def from_pil(images: Sequence[Image.Image]) -> Tensor:
    """B images of one size -> uint8 [B, 3, H, W]."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
