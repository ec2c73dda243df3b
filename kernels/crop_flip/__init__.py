"""Random crop and flip of decoded images, as floats, in one pass; see README.md."""

import torch
from torch import Tensor

from kernels.crop_flip import op as _op  # noqa: F401  (registers the op)
from kernels.crop_flip.reference import Windows, crop_flip_nchw, draw_crops, random_crop_flip

__all__ = ["crop_flip", "crop_flip_nchw", "draw_crops", "random_crop_flip"]


def crop_flip(
    images: Tensor, top: Tensor, left: Tensor, flip: Tensor, *, pad: int, threads: int | None = None
) -> Tensor:
    """Zero-pad by `pad`, crop image i back to its size at (top[i], left[i]), mirror it if flip[i], and scale.

    Args:
        images: uint8 [B, H, W, 3], contiguous.
        top, left: int64 [B] in [0, 2 * pad], on the device of the images.
        flip: bool [B], on the device of the images.
        threads: the maximum number of CPU threads; torch's number by default.

    Returns:
        float32 [B, H, W, 3] in [0, 1], contiguous: the bytes times float32(1 / 255). There is no gradient.

    Raises:
        ValueError: if a shape, dtype or device is wrong or, on a CPU, if an offset is out of range. A GPU
            never waits for the host: there, Triton leaves the image black.
    """
    windows = Windows(top, left, flip, pad)
    _check(images, windows)
    out: Tensor = torch.ops.kernels.crop_flip.default(images, *windows, threads)
    return out


def _check(images: Tensor, windows: Windows) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
    if not images.is_contiguous():
        raise ValueError("images must be contiguous")
    for name, dtype in (("top", torch.int64), ("left", torch.int64), ("flip", torch.bool)):
        values: Tensor = getattr(windows, name)
        if values.dtype != dtype or values.shape != images.shape[:1]:
            given = f"{values.dtype} {list(values.shape)}"
            raise ValueError(f"{name} must be {dtype} [{images.shape[0]}], not {given}")
        if values.device != images.device:
            raise ValueError(
                f"images and {name} must be on one device, not {images.device} and {values.device}"
            )
