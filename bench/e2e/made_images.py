"""Images that need no inversion of the teacher, in place of the stages: noise, and samples of the prior."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.generation.shard_generator import ShardGenerator
from engine.generation.stages import FILTER, SYNTHESIZE, GeneratedBatch, to_gray
from engine.seeding import derive_seed, generator, randn_per_image
from engine.stages.augment import sample
from engine.stages.batch import ImageBatch
from engine.stages.filter import classify
from engine.stages.solver import build_scheduler
from engine.stages.synthesis.synthesizer import Adversary


class MadeImages(ShardGenerator):
    """Makes batches of as many images as the stages would make of one batch of sources.

    Nothing is filtered, and the adversary takes no part.
    """

    def make(
        self,
        index: int,
        adversary: Adversary | None = None,  # noqa: ARG002
        *,
        independent: bool = False,  # noqa: ARG002
    ) -> GeneratedBatch:
        count = self.recipe.synthesize.batch_size
        if self.recipe.augment.method != "none":
            count *= self.recipe.augment.variations
        with self.progress.stage(SYNTHESIZE.name, total=count, unit="images") as stage:
            images, labels = self._images(index, count)
            top1, confidence = classify(
                images,
                self.context.networks.teacher_forward,
                self.context.micro_batches[FILTER.name],
                self.context.accelerator.device,
            )
            stage.advance(count)
        keys = index * count + torch.arange(count)
        sources = ImageBatch(
            images=images,
            labels=top1 if labels is None else labels,
            keys=keys,
            parents=torch.full_like(keys, -1),
            seeds=torch.full_like(keys, derive_seed(self.recipe.seed, "made", index)),
        )
        return GeneratedBatch(
            sources=sources, source_top1=top1, source_confidence=confidence, variations=None, result=None
        )

    @abstractmethod
    def _images(self, index: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Return images uint8 [B, 3, H, W], and their labels or None if the teacher decides them."""


class NoiseImages(MadeImages):
    """Independent pixels, uniform in one half of a batch and normal (0.5 ± 0.25) in the other."""

    def _images(self, index: int, count: int) -> tuple[Tensor, Tensor | None]:
        draw = generator(self.recipe.seed, "noise", index)
        channels = 1 if self.recipe.teacher.is_grey else 3
        shape = (channels, *self.recipe.teacher.size)
        uniform = torch.rand(count // 2, *shape, generator=draw)
        normal = (0.5 + 0.25 * torch.randn(count - count // 2, *shape, generator=draw)).clamp(0, 1)
        pixels = (torch.cat([uniform, normal]) * 255).round().to(torch.uint8)
        return pixels.expand(-1, 3, -1, -1).contiguous(), None


class PriorImages(MadeImages):
    """Samples of the diffusion prior from pure noise and the class token; the image token is zero.

    The embedded prior was trained with each token dropped on its own, so it knows this condition.
    """

    def _images(self, index: int, count: int) -> tuple[Tensor, Tensor | None]:
        networks, device = self.context.networks, self.context.accelerator.device
        prior, tokens, config = networks.prior, networks.class_tokens, self.recipe.augment
        assert prior is not None, "the recipe has a prior"
        assert tokens is not None, "augment.class_condition is text"
        scheduler, classes = build_scheduler(prior, config), len(self.recipe.names)
        labels = torch.arange(count) % classes
        seeds = [derive_seed(self.recipe.seed, "prior", index, number) for number in range(count)]
        images = []
        for rows in torch.arange(count).split(config.images_at_once):
            noise = randn_per_image([seeds[row] for row in rows.tolist()], prior.latent_shape).to(device)
            of_class = tokens[labels[rows]].to(device)
            condition = torch.stack([torch.zeros_like(of_class), of_class], 1)
            pixels = sample(prior, scheduler, config, noise, condition, None)
            images.append(_to_uint8(pixels.float().cpu(), self.recipe.teacher.size))
        made = torch.cat(images)
        return to_gray(made) if self.recipe.teacher.is_grey else made, labels


def _to_uint8(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pixels.shape[2:]) != size:
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
