"""Crop, flip and scaling in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = 1 / 255


def crop_flip_reference(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
    """As `crop_flip`, on any device."""
    batch, height, width, _ = images.shape
    device = images.device
    rows = top[:, None] + torch.arange(height, device=device)  # [B, H]
    columns = torch.arange(width, device=device).expand(batch, width)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + left[:, None]
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    image = torch.arange(batch, device=device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].float() * SCALE
