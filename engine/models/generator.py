"""The image generator that inversion trains: two nearest-neighbour upsamplings, as in DAFL and CMI."""

import torch
from torch import Tensor, nn

from engine.models.upsampled_conv import UpsampledConv2d


class Generator(nn.Module):
    """z [B, latent_dim] -> images [B, channels, size, size] in (0, 1)."""

    def __init__(self, *, latent_dim: int = 256, width: int = 64, channels: int = 3, size: int = 32) -> None:
        super().__init__()
        if size % 4:
            raise ValueError(f"size is {size}; it must be a multiple of 4")
        self.start = (2 * width, size // 4, size // 4)
        self.project = nn.Linear(latent_dim, 2 * width * (size // 4) ** 2)
        self.blocks = nn.Sequential(
            nn.BatchNorm2d(2 * width),
            UpsampledConv2d(2 * width, 2 * width),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            UpsampledConv2d(2 * width, width),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor) -> Tensor:
        h = self.project(z).view(len(z), *self.start)
        return self.blocks(h.contiguous(memory_format=torch.channels_last))


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
