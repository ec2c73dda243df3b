"""The interface of every classifier: RGB images in [0, 1] in, logits out."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from engine.config.classifier import GREY
from engine.models.features import FeatureLayout, forward_with_features, to_nchw
from engine.models.outputs import EntryPath, entry

WITH_ALPHA = (2, 4)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Classifier(nn.Module):
    """A network with its input adapter: RGB float [B, 3, H, W] in [0, 1] -> logits [B, num_classes].

    The adapter takes the luma of the RGB image if the network has one or two input channels, adds an opaque
    alpha channel if it has two or four, and normalizes each channel to (x - mean) / std.

    Attributes:
        feature_path: path of the submodule whose output is the feature map before pooling; None if unknown.
        feature_is_found: whether that map was found by running the network, as nothing names it.
        taps: paths of further submodules whose maps distillation aligns.
        layouts: how the maps at these paths are laid out; a path that is missing has [B, C, h, w].
        name: name of the network in messages.
        output: path to the logits in the network's output in eval mode; empty if the output is the logits.
        output_in_training: the same in train mode.
        memory_format: memory format of weights and inputs; contiguous if the network fails in channels_last.
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
        taps: Iterable[str] = (),
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.is_grey = in_channels in GREY
        self.feature_path = None if feature_path is None else f"network.{feature_path}"
        self.feature_is_found = False
        self.taps = tuple(f"network.{path}" for path in taps)
        self.layouts: dict[str, FeatureLayout] = {}
        self.name = name or type(network).__name__
        self.output: EntryPath = ()
        self.output_in_training: EntryPath = ()
        self.memory_format = torch.channels_last
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)

    @property
    def feature_layout(self) -> FeatureLayout | None:
        """How the feature map is laid out; None for [B, C, h, w]."""
        return None if self.feature_path is None else self.layouts.get(self.feature_path)

    def forward(self, images: Tensor) -> Tensor:
        output = self.network(self.adapted(images))
        return entry(output, self.output_in_training if self.training else self.output)

    def with_features(self, images: Tensor, paths: Iterable[str]) -> tuple[Tensor, list[Tensor]]:
        """Return the logits and what the submodules at `paths` return, known maps as [B, C, h, w].

        Raises UserError as `forward_with_features` does.
        """
        wanted = list(paths)
        logits, features = forward_with_features(self, images, wanted)
        return logits, [self.as_map(path, feature) for path, feature in zip(wanted, features, strict=True)]

    def as_map(self, path: str, feature: Tensor) -> Tensor:
        """Return what the submodule at `path` returned; as [B, C, h, w] if its layout is known."""
        return to_nchw(feature, self.layouts.get(path))

    def adapted(self, images: Tensor) -> Tensor:
        """Return the network's input, [B, in_channels, H, W]."""
        if self.memory_format == torch.contiguous_format:
            images = images.contiguous()
        if self.is_grey:
            images = (images * self.luma).sum(1, keepdim=True)
        if self.in_channels in WITH_ALPHA:
            images = torch.cat([images, torch.ones_like(images[:, :1])], 1)
        return (images - self.mean) / self.std

    def place(self, device: torch.device) -> "Classifier":
        """Move to `device`, with 4-d weights in `memory_format`; return self."""
        return self.to(device).to(memory_format=self.memory_format)
