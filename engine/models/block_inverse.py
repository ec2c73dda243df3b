"""A generator whose maps also predict the teacher's: it inverts the teacher block by block."""

from bisect import bisect_left
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.feature_map import FeatureMap
from engine.models.generator import Generator


class BlockInverse(nn.Module):
    """A generator, and for each of the teacher's feature maps a 1x1 convolution that predicts it.

    After CPNet (ICCV 2025): each block of the generator inverts a block of the teacher, because what enters
    it must be what the teacher computes from the image that comes out. `loss` measures that: the mean over
    maps of the squared error, relative to the variance of the teacher's map. Its gradient also reaches the
    image through the teacher.
    """

    def __init__(self, generator: Generator, maps: Sequence[FeatureMap]) -> None:
        """`maps` are the teacher's; each is predicted from the generator's map of its size or the next."""
        super().__init__()
        self.generator = generator
        self.paths = [found.path for found in maps]
        self.sources = [bisect_left(generator.sides[:-1], max(found.layout.grid)) for found in maps]
        self.heads = nn.ModuleList(
            nn.Conv2d(generator.widths[source], found.channels, 1)
            for source, found in zip(self.sources, maps, strict=True)
        )
        self._maps: list[Tensor] = []

    @property
    def entrance(self) -> nn.Module:
        return self.generator.entrance

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        images, self._maps = self.generator.with_maps(z, labels)
        return images

    def loss(self, features: Sequence[Tensor]) -> Tensor:
        """Return the loss of the last forward pass, for the teacher's maps of its images."""
        losses, maps = [], self._maps
        self._maps = []
        for head, source, feature in zip(self.heads, self.sources, features, strict=True):
            predicted = head(maps[source].float())
            predicted = F.interpolate(predicted, feature.shape[2:], mode="bilinear")
            feature = feature.float()
            losses.append(F.mse_loss(predicted, feature) / feature.detach().var().clamp_min(1e-6))
        return torch.stack(losses).mean()
