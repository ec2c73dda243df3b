"""Wide residual networks for 32x32 images (Zagoruyko and Komodakis, arXiv 1605.07146)."""

import torch.nn.functional as F
from torch import Tensor, nn


class WideBlock(nn.Module):
    """Pre-activation residual block: BN-ReLU-conv3x3 twice, with a 1x1 shortcut if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(h)
        return residual + self.conv2(F.relu(self.bn2(self.conv1(h))))


class WideResNet(nn.Module):
    """WRN-`depth`-`widen`: [B, in_channels, 32, 32] -> logits [B, num_classes].

    `relu` after the last BatchNorm yields the feature map [B, 64 * widen, 8, 8] that distillation uses.
    """

    feature_path = "relu"

    def __init__(self, depth: int, widen: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"depth of a wide ResNet must be 6n + 4, got {depth}")
        num_blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(
                        WideBlock(
                            widths[s] if b == 0 else widths[s + 1],
                            widths[s + 1],
                            stride=2 if s and b == 0 else 1,
                        )
                        for b in range(num_blocks)
                    )
                )
                for s in range(3)
            )
        )
        self.bn = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU()
        self.fc = nn.Linear(widths[3], num_classes)
        self.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stages(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def wrn_16_1(num_classes: int, in_channels: int = 3) -> WideResNet:
    return WideResNet(16, 1, num_classes, in_channels)


def wrn_16_2(num_classes: int, in_channels: int = 3) -> WideResNet:
    return WideResNet(16, 2, num_classes, in_channels)


def wrn_40_1(num_classes: int, in_channels: int = 3) -> WideResNet:
    return WideResNet(40, 1, num_classes, in_channels)


def wrn_40_2(num_classes: int, in_channels: int = 3) -> WideResNet:
    return WideResNet(40, 2, num_classes, in_channels)
