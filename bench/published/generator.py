"""The image generator of CMI, Fast-DFKD, CSD and DDA for images of 32 pixels, with torch's own layers."""

import torch.nn.functional as F
from torch import Tensor, nn

LATENT = 256


class PublishedGenerator(nn.Module):
    """z [B, 256] and labels, which it ignores -> images [B, 3, *size] in (0, 1).

    A linear layer draws a map of a quarter of the size, which is doubled twice: 128, 128, 64 channels. For a
    grey teacher, the single channel that it makes is returned three times. `size` must be a multiple of 4.
    """

    def __init__(self, size: tuple[int, int], *, is_grey: bool) -> None:
        super().__init__()
        self.start = 128, size[0] // 4, size[1] // 4
        self.entrance = nn.Linear(LATENT, 128 * self.start[1] * self.start[2])
        self.layers = nn.Sequential(
            nn.BatchNorm2d(128),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 1 if is_grey else 3, 3, padding=1),
        )

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        del labels
        images = F.sigmoid(self.layers(self.entrance(z).view(len(z), *self.start)))
        return images.expand(-1, 3, -1, -1)
