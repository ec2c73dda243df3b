"""The image generator that inversion trains: nearest-neighbour upsamplings, as in DAFL and CMI."""

import torch
from torch import Tensor, nn

from engine.models.upsampled_conv import UpsampledConv2d

MIN_DOUBLINGS = 2
MAX_START = 16
"""Maximum side of the map that the linear layer draws, which bounds the layer's weights."""


class Generator(nn.Module):
    """z [B, latent_dim] -> images [B, channels, H, W] in (0, 1).

    A linear layer draws a map of at most 16x16, which is doubled at least twice, and more often for larger
    images. If a side is no multiple of the total factor, the result is larger and its margins are cut off.
    """

    def __init__(
        self, *, latent_dim: int = 256, width: int = 64, channels: int = 3, size: tuple[int, int] = (32, 32)
    ) -> None:
        super().__init__()
        doublings = MIN_DOUBLINGS
        while max(size) > MAX_START << doublings:
            doublings += 1
        height, wide = (-(-side // 2**doublings) for side in size)
        self.size, self.start = size, (2 * width, height, wide)
        self.project = nn.Linear(latent_dim, 2 * width * height * wide)
        blocks: list[nn.Module] = [nn.BatchNorm2d(2 * width)]
        for doubling in range(doublings):
            out = width if doubling == doublings - 1 else 2 * width
            blocks += [UpsampledConv2d(2 * width, out), nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid())

    def forward(self, z: Tensor) -> Tensor:
        h = self.project(z).view(len(z), *self.start)
        images = self.blocks(h.contiguous(memory_format=torch.channels_last))
        top, left = ((have - want) // 2 for have, want in zip(images.shape[2:], self.size, strict=True))
        return images[:, :, top : top + self.size[0], left : left + self.size[1]]


@torch.no_grad()
def init_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw new weights: N(0, 0.02) in convolutions and linear layers, N(1, 0.02) in BatchNorm, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.weight.copy_(1 + 0.02 * torch.randn(layer.weight.shape, generator=generator))
            layer.bias.zero_()
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.copy_(0.02 * torch.randn(layer.weight.shape, generator=generator))
            if layer.bias is not None:
                layer.bias.zero_()
