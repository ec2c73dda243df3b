"""Image variations by diffusers' StableDiffusionImageVariationPipeline, from PIL images to PIL images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PublishedVariations:
    """`copies` of each source; `pipeline` on its device, its progress bar off, without a safety checker."""

    pipeline: Any
    copies: int
    steps: int
    guidance_scale: float

    def one_by_one(self, sources: Sequence[Image]) -> list[Image]:
        """A call for each source, as in the README."""
        return [variation for source in sources for variation in self.batched([source])]

    def batched(self, sources: Sequence[Image], latents: Tensor | None = None) -> list[Image]:
        """All in one call, source by source; `latents`: the noise to start from."""
        return self.pipeline(
            list(sources),
            num_images_per_prompt=self.copies,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            latents=latents,
        ).images
