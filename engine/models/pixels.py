"""Pixels as a source of images: a sum of resolutions, so that large shapes are found before details."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_SIDE = 7
"""Minimum larger side of the coarsest level."""
INITIAL_STD = 0.1


class Pixels(nn.Module):
    """Free parameters -> images [B, channels, H, W] in (0, 1); z and labels change nothing.

    The image is the sigmoid of a sum of levels, each twice as fine as the one before. All have the
    same learning rate, so an optimizer changes a shape as fast as a detail. Feature visualization uses
    Laplacian pyramids and Fourier bases for the same reason. Three channels are decorrelated: the levels hold
    the principal directions of the colours of natural images.
    """

    def __init__(self, *, batch_size: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        sizes = [size]
        while max(sizes[0]) >= 2 * MIN_SIDE:
            sizes.insert(0, ((sizes[0][0] + 1) // 2, (sizes[0][1] + 1) // 2))
        self.levels = nn.ParameterList(torch.zeros(batch_size, channels, *level) for level in sizes)
        self.colours: Tensor
        self.register_buffer("colours", colour_directions(channels), persistent=False)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        levels = (
            F.interpolate(level, self.size, mode="bilinear", align_corners=False) for level in self.levels
        )
        total = torch.stack([level.float() for level in levels]).sum(0)
        with torch.autocast(total.device.type, enabled=False):
            return torch.einsum("bchw,dc->bdhw", total, self.colours).sigmoid()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw new levels from N(0, 0.1)."""
        for level in self.levels:
            level.copy_(INITIAL_STD * torch.randn(level.shape, generator=generator))


def colour_directions(channels: int) -> Tensor:
    """Return [channels, channels], whose columns are the colours that vary together in natural images.

    These are brightness, blue against yellow, and green against magenta, by their standard deviations; the
    identity unless there are three channels.
    """
    if channels != 3:
        return torch.eye(channels)
    return torch.tensor([[1.0, 0.35, 0.08], [1.0, 0.0, -0.19], [1.0, -0.35, 0.12]])
