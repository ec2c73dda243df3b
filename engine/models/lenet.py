"""LeNet-5 (LeCun et al., 1998) with ReLU and max-pooling, and ZSKD's halved student (arXiv 1905.08114)."""

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """[B, in_channels, 32, 32] -> logits [B, num_classes]; no BatchNorm.

    `relu` after the second convolution yields the feature map [B, widths[1], 10, 10].
    """

    feature_path = "relu"

    def __init__(self, widths: tuple[int, int], num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 5)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 5)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(widths[1] * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # [B, widths[0], 14, 14]
        x = F.max_pool2d(self.relu(self.conv2(x)), 2)  # [B, widths[1], 5, 5]
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


def lenet_5(num_classes: int, in_channels: int = 3) -> LeNet:
    return LeNet((6, 16), num_classes, in_channels)


def lenet_5_half(num_classes: int, in_channels: int = 3) -> LeNet:
    """LeNet-5 with half the convolution channels and the same hidden linear layers."""
    return LeNet((3, 8), num_classes, in_channels)
