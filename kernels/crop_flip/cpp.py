"""Calls into csrc/by_isa/crop_flip.cpp."""

import torch
from torch import Tensor

from kernels import _native
from kernels.crop_flip.reference import Windows


def forward(images: Tensor, windows: Windows, threads: int | None) -> Tensor:
    out = torch.empty(images.shape)
    _native.crop_flip_forward(
        _describe(images, windows, threads or torch.get_num_threads()),
        images=images.data_ptr(),
        out=out.data_ptr(),
    )
    return out


def _describe(images: Tensor, windows: Windows, threads: int) -> _native.CropFlip:
    batch, height, width, _ = images.shape
    return _native.CropFlip(
        batch=batch,
        height=height,
        width=width,
        pad=windows.pad,
        top=windows.top.data_ptr(),
        left=windows.left.data_ptr(),
        flip=windows.flip.data_ptr(),
        threads=threads,
    )
