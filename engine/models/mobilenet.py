"""MobileNetV2 (Sandler et al., arXiv 1801.04381) in its common form for 32x32 images.

Differences from the paper: stride 1 in the stem and the second stage, ReLU instead of ReLU6, an expansion in
every block, and a 1x1 conv-BN shortcut if a block of stride 1 changes the width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (  # expansion, width, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM_WIDTH, HEAD_WIDTH = 32, 1280


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise 3x3 and a linear 1x1 projection; the input is added at stride 1."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        width = expansion * in_channels
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride == 1 and in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return h + self.shortcut(x) if self.stride == 1 else h


class MobileNetV2(nn.Module):
    """[B, in_channels, 32, 32] -> logits [B, num_classes]; `relu` yields the feature map [B, 1280, 4, 4]."""

    feature_path = "relu"

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM_WIDTH, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        blocks, width = [], STEM_WIDTH
        for expansion, out_channels, num_blocks, stride in STAGES:
            for b in range(num_blocks):
                blocks.append(InvertedResidual(width, out_channels, expansion, stride if b == 0 else 1))
                width = out_channels
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(width, HEAD_WIDTH, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(HEAD_WIDTH)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(HEAD_WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


def mobilenet_v2(num_classes: int, in_channels: int = 3) -> MobileNetV2:
    return MobileNetV2(num_classes, in_channels)
