"""Nearest-neighbour upsampling and a 3x3 convolution, computed as one convolution at the lower resolution."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UpsampledConv2d(nn.Conv2d):
    """conv3x3(upsample(x)), zero-padded: [B, C_in, H, W] -> [B, C_out, 2H, 2W].

    In each of the four phases (row parity, column parity) of the output, the nine taps read only 2x2
    different inputs, so their weights add up to a 2x2 kernel. One 2x2 convolution with 4 · C_out channels
    computes all phases: 16 multiplications per input pixel and channel pair instead of 36, exact up to
    rounding.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        phases = F.conv2d(x, phase_kernels(self.weight), self.bias.repeat(4), padding=1)
        interleaved: Tensor = _Interleave.apply(phases)
        return interleaved


def phase_kernels(weight: Tensor) -> Tensor:
    """Map [O, I, 3, 3] to [4 · O, I, 2, 2]: the kernels of phases (0, 0), (0, 1), (1, 0), (1, 1)."""
    return torch.cat([_phase(_phase(weight, 2, row), 3, column) for row in (0, 1) for column in (0, 1)])


def _phase(weight: Tensor, dim: int, parity: int) -> Tensor:
    """Add up the taps of one axis: an even output reads inputs (i - 1, i, i), an odd one (i, i, i + 1)."""
    before, at, after = weight.unbind(dim)
    return torch.stack([before, at + after] if parity == 0 else [before + at, after], dim)


class _Interleave(torch.autograd.Function):
    """[B, 4 · C, H + 1, W + 1] -> [B, C, 2H, 2W]: out[2i + r, 2j + c] = phase (r, c) at [i + r, j + c]."""

    @staticmethod
    def forward(_ctx: Any, phases: Tensor) -> Tensor:
        batch, channels = phases.shape[0], phases.shape[1] // 4
        height, width = (n - 1 for n in phases.shape[2:])
        grid = phases.permute(0, 2, 3, 1).unflatten(3, (2, 2, channels))  # [B, H + 1, W + 1, r, c, C]
        out = phases.new_empty(batch, height, 2, width, 2, channels)
        for r in range(2):
            for c in range(2):
                out[:, :, r, :, c] = grid[:, r : r + height, c : c + width, r, c]
        return out.view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        batch, channels, height, width = grad.shape[0], grad.shape[1], *(n // 2 for n in grad.shape[2:])
        out = grad.permute(0, 2, 3, 1).reshape(batch, height, 2, width, 2, channels)
        grid = grad.new_zeros(batch, height + 1, width + 1, 2, 2, channels)
        for r in range(2):
            for c in range(2):
                grid[:, r : r + height, c : c + width, r, c] = out[:, :, r, :, c]
        return grid.view(batch, height + 1, width + 1, 4 * channels).permute(0, 3, 1, 2)
