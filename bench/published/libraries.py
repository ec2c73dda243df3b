"""diffusers and open_clip, called as their READMEs do: image variations, and cosines of CLIP embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PublishedVariations:
    """`copies` variations of each source by a StableDiffusionImageVariationPipeline, PIL images in and out.

    `pipeline` is on its device, with its progress bar off and without a safety checker.
    """

    pipeline: Any
    copies: int
    steps: int
    guidance_scale: float

    def one_by_one(self, sources: Sequence[Image]) -> list[Image]:
        """Return the variations, with one call per source, as in the README."""
        return [variation for source in sources for variation in self.batched([source])]

    def batched(self, sources: Sequence[Image], latents: Tensor | None = None) -> list[Image]:
        """Return the variations, source by source, with a single call; `latents` is the initial noise."""
        return self.pipeline(
            list(sources),
            num_images_per_prompt=self.copies,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            latents=latents,
        ).images


@dataclass(frozen=True, kw_only=True)
class PublishedSimilarity:
    """Cosines of variations to their sources by open_clip, which embeds `batch` images at once.

    Each source has `copies` variations, in the order of the sources.
    """

    model: Any
    preprocess: Callable[[Image], Tensor]
    copies: int
    batch: int
    device: torch.device

    def of_images(self, sources: Sequence[Image], variations: Sequence[Image]) -> Tensor:
        """Return the cosines [V] of PIL images."""
        return self._cosines(*(self._embed_images(images) for images in (sources, variations)))

    def of_tensors(self, sources: Tensor, variations: Tensor) -> Tensor:
        """Return the cosines [V] of images that `preprocess` has transformed, [B, 3, H, W] on the CPU."""
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
