"""A student without kinks, which would amplify differences in rounding."""

import os

from torch import Tensor, nn

INTERRUPT = "INTERRUPT_TRAINING_AFTER"
"""Environment variable: the number of training steps after which the student raises KeyboardInterrupt."""


class Interruption(nn.Module):
    """The identity for a number of training steps, then KeyboardInterrupt."""

    def __init__(self) -> None:
        super().__init__()
        self.left = int(os.environ.get(INTERRUPT, 10**9))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        return x


def smooth(num_classes: int, in_channels: int) -> nn.Sequential:
    """Return [B, in_channels, H, W] -> logits, with BatchNorm2d and BatchNorm1d; features are from `6`."""
    return nn.Sequential(
        Interruption(),
        nn.Conv2d(in_channels, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(32),
        nn.Linear(32, num_classes),
    )
