"""Random images, as batches of the engine and as PIL images."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from engine.stages.batch import ImageBatch


def sources(count: int, size: int, *, variations: int) -> ImageBatch:
    """Return smooth random images whose keys leave room for `variations` variations of each."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return ImageBatch(
        images=(smooth * 255).round().to(torch.uint8),
        labels=torch.zeros(count, dtype=torch.int64),
        keys=torch.arange(count) * (variations + 1),
        parents=torch.full((count,), -1),
        seeds=torch.arange(count),
    )


def noisy_copies(batch: ImageBatch, copies: int) -> ImageBatch:
    """Return `copies` of each image, source by source, each with more noise than the one before."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.arange(len(batch)).repeat_interleave(copies)
    amount = torch.arange(1, len(rows) + 1).view(-1, 1, 1, 1) / len(rows)
    images = batch.images[rows]
    noise = 255 * torch.rand(images.shape, generator=generator)
    mixed = images * (1 - amount) + noise * amount
    keys = batch.keys[rows] + 1 + torch.arange(copies).repeat(len(batch))
    return ImageBatch(
        images=mixed.round().to(torch.uint8),
        labels=batch.labels[rows],
        keys=keys,
        parents=batch.keys[rows],
        seeds=keys,
    )


def to_pil(images: Tensor) -> list[Image.Image]:
    """Convert uint8 [B, 3, H, W] to B images."""
    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy()]


def from_pil(images: Sequence[Image.Image]) -> Tensor:
    """Convert B images of the same size to uint8 [B, 3, H, W]."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
