"""CLIP image towers: open_clip's, used by the filter, and transformers', which conditions the prior."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.spec import BATCHES, Input, NetworkSpec, batch


class _ImageTower(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, tower: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.embed((images - self.mean) / self.std),)

    def embed(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels)


class _VisionModel(_ImageTower):
    def embed(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels).image_embeds


def open_clip_spec(
    tower: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int],
    batches: tuple[int, int, int] = BATCHES,
) -> NetworkSpec:
    """Return the spec of open_clip's `visual`.

    Images [B, 3, *size] in [0, 1] -> embeddings [B, D], not normalized.
    """
    return _spec("clip", _ImageTower(tower, mean, std), size, batches)


def clip_vision_spec(
    model: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int],
    batches: tuple[int, int, int] = BATCHES,
) -> NetworkSpec:
    """Return the spec of a CLIPVisionModelWithProjection; inputs and outputs as in `open_clip_spec`."""
    return _spec("image_encoder", _VisionModel(model, mean, std), size, batches)


def _spec(name: str, module: nn.Module, size: tuple[int, int], batches: tuple[int, int, int]) -> NetworkSpec:
    images = Input(name="images", shape=(batch(batches), 3, *size), values="uniform")
    return NetworkSpec(name=name, module=module.eval(), inputs=(images,), outputs=("embeddings",))
