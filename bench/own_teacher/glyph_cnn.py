"""The teacher of the glyph data set: a plain convolutional network that knows nothing of the engine.

As a user's network would, it stands in a module of its own and imports torch alone.
"""

from torch import Tensor, nn


class GlyphCNN(nn.Module):
    """Grey [B, in_channels, 28, 28], normalized, -> logits [B, num_classes]."""

    pretrained_cfg = {"input_size": (1, 28, 28), "mean": (0.239,), "std": (0.204,)}

    def __init__(self, num_classes: int, in_channels: int, width: int = 24) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(in_channels, width),
            *_block(width, width),
            nn.MaxPool2d(2),
            *_block(width, 2 * width),
            *_block(2 * width, 2 * width),
            nn.MaxPool2d(2),
            *_block(2 * width, 4 * width),
            *_block(4 * width, 4 * width),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


def glyph_cnn(num_classes: int = 10, in_channels: int = 1) -> GlyphCNN:
    """Return the network with random weights."""
    return GlyphCNN(num_classes, in_channels)


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]
