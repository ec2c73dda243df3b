"""Images of a grey teacher: RGB between the stages, all channels equal."""

import torch
from torch import Tensor

from engine.models.classifier import LUMA


def greyed(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W]: the luma of RGB images uint8 [B, 3, H, W], rounded, in three equal channels."""
    weights = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    luma = (images * weights).sum(1, keepdim=True).round().to(torch.uint8)
    return luma.expand_as(images).contiguous()
