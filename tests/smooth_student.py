"""A student without kinks, which amplify rounding: what a run's parts round differently stays small in it."""

import os

from torch import Tensor, nn

INTERRUPT = "INTERRUPT_TRAINING_AFTER"
"""Environment variable: number of training steps after which the student is as if Ctrl-C was pressed."""


class Interruption(nn.Module):
    """The identity until it is interrupted."""

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
    """[B, in_channels, H, W] -> logits, by BatchNorm of maps and of vectors; the feature map is of `6`."""
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
