"""Registration of `kernels::crop_flip` with torch: implementations, fake tensors; there is no gradient."""

import torch
from torch import Tensor
from torch.library import define, impl, register_fake

from kernels.backend import backend_for, implementation
from kernels.crop_flip.reference import Windows, check_offsets

_WINDOWS = "Tensor top, Tensor left, Tensor flip, int pad"

define("kernels::crop_flip", f"(Tensor images, {_WINDOWS}, int? threads) -> Tensor")


@impl("kernels::crop_flip", ("cpu", "cuda"))
def _forward(
    images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int, threads: int | None
) -> Tensor:
    windows = Windows(top.contiguous(), left.contiguous(), flip.contiguous(), pad)
    if images.device.type == "cpu":
        check_offsets(windows)
    backend = backend_for(images, (torch.uint8,))
    out: Tensor = implementation("kernels.crop_flip", backend).forward(images, windows, threads)
    return out


@register_fake("kernels::crop_flip")
def _forward_fake(
    images: Tensor, _top: Tensor, _left: Tensor, _flip: Tensor, _pad: int, _threads: int | None
) -> Tensor:
    return images.new_empty(images.shape, dtype=torch.float32)
