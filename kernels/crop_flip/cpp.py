"""Calls of csrc/by_isa/crop_flip.cpp."""

import torch
from torch import Tensor

from kernels import _native


def forward(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int, threads: int) -> Tensor:
    batch, height, width, _ = images.shape
    out = torch.empty(images.shape)
    op = _native.CropFlip(
        batch=batch,
        height=height,
        width=width,
        pad=pad,
        top=top.data_ptr(),
        left=left.data_ptr(),
        flip=flip.data_ptr(),
        threads=threads,
    )
    _native.crop_flip_forward(op, images.data_ptr(), out.data_ptr())
    return out
