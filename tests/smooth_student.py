"""A student without kinks: what rounding does to its training stays small for some steps."""

from torch import nn


def smooth(num_classes: int, in_channels: int) -> nn.Sequential:
    """BatchNorm three times, no ReLU; [B, in_channels, H, W] -> logits. The feature map is that of `6`."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.SiLU(),
        nn.Conv2d(32, 32, 3, 1, 1),
        nn.BatchNorm2d(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )
