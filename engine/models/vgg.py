"""VGG-11 with BatchNorm (Simonyan and Zisserman, arXiv 1409.1556) and a one-layer head for 32x32 images."""

from torch import Tensor, nn

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # widths of the convolutions between max-pools


def _features(in_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for widths in STAGES:
        for width in widths:
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            in_channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """[B, in_channels, 32, 32] -> logits [B, num_classes].

    The ReLU before the last max-pool yields the feature map [B, 512, 2, 2].
    """

    feature_path = "features.27"

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.features = _features(in_channels)
        self.classifier = nn.Linear(STAGES[-1][-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def vgg_11_bn(num_classes: int, in_channels: int = 3) -> VGG:
    return VGG(num_classes, in_channels)
