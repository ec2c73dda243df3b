"""Cosines of variations to their sources by open_clip, as its README embeds images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PublishedSimilarity:
    """Each of the sources has `copies` variations, source by source; `batch` images are embedded at once."""

    model: Any
    preprocess: Callable[[Image], Tensor]
    copies: int
    batch: int
    device: torch.device

    def of_images(self, sources: Sequence[Image], variations: Sequence[Image]) -> Tensor:
        """PIL images in, cosines [V] out."""
        return self._cosines(*(self._embed_images(images) for images in (sources, variations)))

    def of_tensors(self, sources: Tensor, variations: Tensor) -> Tensor:
        """The same of what `preprocess` gives, [B, 3, H, W] on the CPU."""
        return self._cosines(*(self._embed_tensors(pixels) for pixels in (sources, variations)))

    def _embed_images(self, images: Sequence[Image]) -> Tensor:
        return torch.cat(
            [
                self._embed(torch.stack([self.preprocess(image) for image in images[i : i + self.batch]]))
                for i in range(0, len(images), self.batch)
            ]
        )

    def _embed_tensors(self, pixels: Tensor) -> Tensor:
        return torch.cat([self._embed(chunk) for chunk in pixels.split(self.batch)])

    def _embed(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.model.encode_image(pixels.to(self.device))
            features /= features.norm(dim=-1, keepdim=True)
        return features

    def _cosines(self, sources: Tensor, variations: Tensor) -> Tensor:
        return (variations * sources.repeat_interleave(self.copies, 0)).sum(-1).cpu()
