"""Memory layouts of [B, C, H, W] tensors."""

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a dense x lie side by side; where both layouts hold, this one is preferred."""
    return x.is_contiguous(memory_format=torch.channels_last)


def dense(x: Tensor) -> Tensor:
    """x itself where it is dense in channels_last or contiguous memory, else a contiguous copy."""
    return x if is_channels_last(x) else x.contiguous()


def dense_like(x: Tensor, other: Tensor) -> Tensor:
    """x in the memory layout of a dense `other` of the same shape."""
    return x.contiguous(memory_format=torch.channels_last if is_channels_last(other) else torch.contiguous_format)
