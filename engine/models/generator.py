"""The image generators that inversion trains: nearest-neighbour doublings and convolutions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.upsampled_conv import UpsampledConv2d

MAX_START = 7
"""Maximum side of the map that the linear layer draws, which bounds the layer's weights."""
LABEL_SCALE = 0.3
"""Size of the label's embedding relative to z. A larger one makes images of a class alike."""


class Generator(nn.Module):
    """z [B, latent_dim] and labels int64 [B] -> images [B, channels, H, W] in (0, 1).

    A linear layer draws a map of at most 7x7, which is doubled until it has the size of the image. If a side
    is no multiple of the total factor, the result is larger and its margins are cut off. With `num_classes`,
    the linear layer sees a learned embedding of the label next to z; without, labels change nothing.
    """

    def __init__(
        self,
        *,
        latent_dim: int = 256,
        width: int = 64,
        channels: int = 3,
        size: tuple[int, int] = (32, 32),
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.sides = doubled_sides(size)
        self.widths = [channels_at(side, width) for side in self.sides]
        first, last = self.widths[0], self.widths[-1]
        self.size = size
        self.start = (first, *(-(-side // 2 ** (len(self.sides) - 1)) for side in size))
        self.embedding = None if num_classes is None else nn.Embedding(num_classes, latent_dim)
        self.entrance = nn.Linear(latent_dim * (1 if num_classes is None else 2), math.prod(self.start))
        self.norm = nn.BatchNorm2d(first)
        self.blocks = nn.ModuleList(
            nn.Sequential(UpsampledConv2d(into, out), nn.BatchNorm2d(out), nn.LeakyReLU(0.2))
            for into, out in zip(self.widths, self.widths[1:], strict=False)
        )
        self.to_image = nn.Sequential(nn.Conv2d(last, channels, 3, padding=1), nn.Sigmoid())

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.with_maps(z, labels)[0]

    def with_maps(self, z: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the images, and the map of each side in `sides`."""
        if self.embedding is not None:
            scale = LABEL_SCALE * z.shape[1] ** 0.5
            z = torch.cat([z, scale * F.normalize(self.embedding(labels), dim=1)], 1)
        h = self.entrance(z).view(len(z), *self.start).contiguous(memory_format=torch.channels_last)
        maps = [self.norm(h)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return centred(self.to_image(maps[-1]), self.size), maps


class NoisyGenerator(nn.Module):
    """Labels int64 [B] -> images, as in NAYER (Tran et al., CVPR 2024, arXiv 2310.00258).

    The fixed embedding of the label goes through BatchNorm and a linear layer, then into the generator. The
    linear layer is drawn again for each batch: the embedding keeps the class, the layer gives variety. Image
    i of a batch goes through layer i // C: if labels take turns, no two images of a class go through the same
    one. z changes nothing.
    """

    embeddings: Tensor

    def __init__(self, generator: Generator, embeddings: Tensor, *, latent_dim: int, batch_size: int) -> None:
        """`embeddings`, [C, D], are those of the class names by CLIP's text tower, or any codes."""
        super().__init__()
        classes, width = embeddings.shape
        self.register_buffer("embeddings", F.normalize(embeddings.float(), dim=1), persistent=False)
        self.norm = nn.BatchNorm1d(width)
        self.entrance = nn.ModuleList(nn.Linear(width, latent_dim) for _ in range(-(-batch_size // classes)))
        self.generator = generator

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        codes = self.norm(self.embeddings[labels])
        pieces = codes.split(len(self.embeddings))
        layers = self.entrance[: len(pieces)]
        noise = torch.cat([layer(piece) for layer, piece in zip(layers, pieces, strict=True)])
        return self.generator(F.leaky_relu(noise, 0.2), labels)


def doubled_sides(size: tuple[int, int]) -> list[int]:
    """Return the larger side of the generator's maps for images of this size, from at most 7 upwards."""
    doublings = max(1, math.ceil(math.log2(max(size) / MAX_START)))
    start = -(-max(size) // 2**doublings)
    return [start << doubling for doubling in range(doublings + 1)]


def channels_at(side: int, width: int) -> int:
    """Return the channels of a map: 2 · width up to 16x16, then half as many for each of three doublings."""
    halvings = max(0, math.ceil(math.log2(side / 16)))
    return max(2 * width >> min(halvings, 3), 1)


def centred(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the middle [B, C, *size] of larger images."""
    top, left = ((have - want) // 2 for have, want in zip(images.shape[2:], size, strict=True))
    return images[:, :, top : top + size[0], left : left + size[1]]


@torch.no_grad()
def init_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw new weights: N(0, 0.02) in convolutions and linear layers, N(1, 0.02) in BatchNorm, biases 0.

    Embeddings are drawn from N(0, 1).
    """
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.weight.copy_(1 + 0.02 * torch.randn(layer.weight.shape, generator=generator))
            layer.bias.zero_()
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.copy_(0.02 * torch.randn(layer.weight.shape, generator=generator))
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.Embedding):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
