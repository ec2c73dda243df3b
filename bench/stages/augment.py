"""Augmentation: the whole stage on S sources with K variations each, uint8 images in and out."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.images import from_pil, sources, to_pil
from bench.parity import require_alike
from bench.published.libraries import PublishedVariations
from bench.random_networks import ENCODER_SMALL, UNET_16M, VAE_OF_4, variation_pipeline
from bench.stages.case import Case, Machine, Ours, Work, flops
from engine.config.augment import AugmentConfig
from engine.models.priors import DiffusionPrior
from engine.paths import resolve
from engine.runtime.base import RuntimeOptions
from engine.runtime.networks import open_prior
from engine.seeding import derive_seed, randn_per_image
from engine.stages.augment import augment
from engine.stages.batch import ImageBatch

EMBEDDED = "assets/fashion-mnist/image-variation"


@dataclass(frozen=True, kw_only=True)
class Size:
    """The amount of work in a case; all variations are made in one micro-batch."""

    sources: int
    variations: int
    steps: int
    guidance_scale: float = 3.0

    @property
    def images(self) -> int:
        return self.sources * self.variations

    def config(self) -> AugmentConfig:
        return AugmentConfig(
            prior="given",
            variations=self.variations,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            micro_batch=self.images,
        )


SIZES = {
    "embedded": Size(sources=16, variations=8, steps=5),
    "unet-16m": Size(sources=4, variations=4, steps=4),
}


def cases(device: torch.device, _: int | None = None) -> list[Case]:
    pipelines = {"embedded": load_pipeline(EMBEDDED), "unet-16m": random_pipeline()}
    return [case(name, pipelines[name], size, device) for name, size in SIZES.items()]


def load_pipeline(folder: str) -> Any:
    """Load a pipeline folder in float32, regardless of its stored precision."""
    from diffusers import StableDiffusionImageVariationPipeline
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipeline = StableDiffusionImageVariationPipeline.from_pretrained(
        resolve(folder, "augment"),
        dtype=torch.float32,
        safety_checker=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_pipeline() -> Any:
    """Build a pipeline with a UNet of 16 M weights, for 32x32 latents of 128x128 images."""
    return variation_pipeline(UNET_16M, VAE_OF_4, ENCODER_SMALL, scheduler="DPMSolverMultistepScheduler")


def case(name: str, pipeline: Any, size: Size, device: torch.device) -> Case:
    """Compare `pipeline`, which uses our solver, with its networks in our runtime."""
    prior = prior_of(pipeline, device)
    batch = sources(size.sources, prior.image_shape[0], variations=size.variations)
    published = PublishedVariations(
        pipeline=pipeline.to(device),
        copies=size.variations,
        steps=size.steps,
        guidance_scale=size.guidance_scale,
    )
    given = to_pil(batch.images)
    calls: dict[str, Callable[[], object]] = {
        "diffusers as in its README, fp32": lambda: published.one_by_one(given),
        "diffusers batched, fp32": lambda: published.batched(given),
    }

    def open_ours(machine: Machine) -> Ours:
        make = variations(prior, size, batch, machine.options)
        theirs = published.batched(given, noise(batch, size, prior.latent_shape).to(device))
        require_alike(f"augment/{name}", make(), from_pil(theirs))
        plain = replace(machine.options, runtime="torch", precision="fp32", compiled=False)
        counted = variations(prior, size, batch, plain)
        return Ours(
            work={f"augment/{name}": Work(call=make, amount=size.images, runtime=machine.options.runtime)},
            flops=flops(counted) / size.images,
            dtype=machine.options.precision,
            shape=f"{size.sources} x {size.variations}, {size.steps} steps",
        )

    work = {baseline: Work(call=call, amount=size.images) for baseline, call in calls.items()}
    return Case(published=work, open=open_ours, unit="img/s")


def variations(
    prior: DiffusionPrior, size: Size, batch: ImageBatch, options: RuntimeOptions
) -> Callable[[], Tensor]:
    """Return the stage with the prior open in `options`; every call makes the same uint8 [V, 3, H, W]."""
    opened = open_prior(prior, size.config(), options)

    def make() -> Tensor:
        batches = augment(batch, opened, size.config(), seed=0, class_tokens=None, device=options.device)
        return ImageBatch.cat(list(batches)).images

    return make


def noise(batch: ImageBatch, size: Size, latent_shape: tuple[int, int, int]) -> Tensor:
    """Return the initial noise of the stage at seed 0."""
    pairs = [(key, copy) for key in batch.keys.tolist() for copy in range(size.variations)]
    return randn_per_image([derive_seed(0, "augment", *pair) for pair in pairs], latent_shape)


def prior_of(pipeline: Any, device: torch.device) -> DiffusionPrior:
    """Copy the pipeline's networks into the form that `load_prior` returns."""
    unet, vae, encoder = (
        copy.deepcopy(network).to(device).float().eval().requires_grad_(False)
        for network in (pipeline.unet, pipeline.vae, pipeline.image_encoder)
    )
    channels, side = unet.config.in_channels, unet.config.sample_size
    pixels = side * 2 ** (len(vae.config.block_out_channels) - 1)
    processor = pipeline.feature_extractor
    return DiffusionPrior(
        vae=vae.to(memory_format=torch.channels_last),
        unet=unet.to(memory_format=torch.channels_last),
        image_encoder=encoder,
        scheduler_config=dict(pipeline.scheduler.config),
        latent_shape=(channels, side, side),
        image_shape=(pixels, pixels),
        encoder_size=encoder.config.image_size,
        encoder_mean=tuple(processor.image_mean),
        encoder_std=tuple(processor.image_std),
    )
