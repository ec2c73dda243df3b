"""Random crop and flip of decoded images, as floats, in one pass; see README.md."""

import torch
from torch import Tensor

from kernels.backend import backend_for
from kernels.crop_flip import cpp
from kernels.crop_flip.reference import crop_flip_reference

__all__ = ["crop_flip"]


def crop_flip(
    images: Tensor, top: Tensor, left: Tensor, flip: Tensor, *, pad: int, threads: int | None = None
) -> Tensor:
    """What the windows at (top, left) of the images, zero-padded by `pad`, show; mirrored where `flip`.

    images uint8 [B, H, W, 3], contiguous; top, left int64 [B] in [0, 2 * pad]; flip bool [B]; on one device.
    Returns float32 [B, H, W, 3] in [0, 1], contiguous: the bytes times float32(1 / 255). ValueError where
    shapes, dtypes or devices are wrong and, on a CPU, where an offset is out of range. `threads`: at most so
    many of a CPU's; torch's number unless given.
    """
    top, left, flip = top.contiguous(), left.contiguous(), flip.contiguous()
    _check(images, top, left, flip, pad)
    like = images.new_empty(images.shape[:1], dtype=torch.float32)
    if images.numel() and backend_for(like) == "cpp":
        return cpp.forward(images, top, left, flip, pad, threads or torch.get_num_threads())
    return crop_flip_reference(images, top, left, flip, pad)


def _check(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
    if not images.is_contiguous():
        raise ValueError("images must be contiguous")
    for name, values, dtype in (
        ("top", top, torch.int64),
        ("left", left, torch.int64),
        ("flip", flip, torch.bool),
    ):
        if values.dtype != dtype or values.shape != images.shape[:1]:
            given = f"{values.dtype} {list(values.shape)}"
            raise ValueError(f"{name} must be {dtype} [{images.shape[0]}], not {given}")
        if values.device != images.device:
            raise ValueError(
                f"images and {name} must be on one device, not {images.device} and {values.device}"
            )
    if images.device.type == "cpu" and len(images):
        for name, values in (("top", top), ("left", left)):
            if values.min() < 0 or values.max() > 2 * pad:
                raise ValueError(f"{name} must lie between 0 and {2 * pad}, twice the padding")
