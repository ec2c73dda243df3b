"""Memory layouts of [B, C, H, W] tensors."""

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Return whether `x` is dense in channels_last memory, even if it is also contiguous."""
    return x.is_contiguous(memory_format=torch.channels_last)


def dense(x: Tensor) -> Tensor:
    """Return `x` itself if it is dense in channels_last or contiguous memory, else a contiguous copy."""
    return x if is_channels_last(x) else x.contiguous()


def dense_like(x: Tensor, other: Tensor) -> Tensor:
    """Return `x` in the memory layout of `other`, a dense tensor of the same shape."""
    return x.contiguous(
        memory_format=torch.channels_last if is_channels_last(other) else torch.contiguous_format
    )


def dense_rows(x: Tensor) -> Tensor:
    """Return `x` [B, C] itself if the elements of each row are adjacent, else a contiguous copy."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
