"""The door every classifier stands behind: RGB images in [0, 1] in, logits out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.models.outputs import EntryPath, entry

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Classifier(nn.Module):
    """A network with its input adapter: RGB float [B, 3, H, W] in [0, 1] -> logits [B, num_classes].

    A network of one input channel gets the luma of the RGB image; then (x - mean) / std per channel.
    `feature_path` names the submodule whose output is the feature map before pooling, or is None where that
    is not known; `name` is what messages call the network; `output` is the path to the logits in what the
    network returns, empty for a network that returns them alone.
    """

    mean: Tensor
    std: Tensor
    luma: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        feature_path: str | None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.feature_path = None if feature_path is None else f"network.{feature_path}"
        self.name = name or type(network).__name__
        self.output: EntryPath = ()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.in_channels == 1:
            images = (images * self.luma).sum(1, keepdim=True)
        return entry(self.network((images - self.mean) / self.std), self.output)


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    """The BatchNorm2d layers that keep running statistics, in order of registration."""
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
    ]
