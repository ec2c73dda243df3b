"""Augmentation with guidance: B variations of one source, uint8 pixels in and out.

The baseline's images stay floats on the GPU; only ours also pays for the transfer to the host as bytes.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from bench.images import sources, to_pil
from bench.parity import require_alike
from bench.production.job import Candidate, Job, Make
from bench.production.ways import BASELINES, OURS, require_here
from bench.random_networks import (
    ENCODER_SMALL,
    ENCODER_VIT_L_14,
    UNET_16M,
    UNET_SD_1_5,
    VAE_OF_4,
    VAE_SD_1_5,
    tiny_autoencoder,
    variation_pipeline,
)
from bench.stages.augment import Size, noise, prior_of
from bench.stages.case import flops
from engine.models.priors import DiffusionPrior
from engine.runtime.base import RuntimeOptions
from engine.runtime.networks import open_prior
from engine.stages.augment import augment
from engine.stages.batch import ImageBatch

PRIORS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "sd-1.5": (UNET_SD_1_5, VAE_SD_1_5, ENCODER_VIT_L_14),
    "unet-16m": (UNET_16M, VAE_OF_4, ENCODER_SMALL),
}
VAES = ("full", "taesd")
GUIDANCE = 3.0
LEAST_COSINE = 0.98
"""Minimum cosine between images; random networks amplify the rounding of fp16."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to measure."""

    prior: str
    """A name in PRIORS."""
    batches: Sequence[int]
    """Variations or images per batch."""
    steps: Sequence[int]
    """Numbers of solver steps."""
    ways: Sequence[str]
    """Names in WAYS."""
    dtype: torch.dtype
    """Dtype of the baseline."""


def jobs(wanted: Wanted, options: RuntimeOptions) -> Iterator[Job]:
    """Yield a job per VAE and batch size."""
    device, dtype = options.device, wanted.dtype
    pipeline = variation_pipeline(
        *PRIORS[wanted.prior], scheduler="DDIMScheduler", dtype=dtype, device=device
    )
    vaes = {"full": pipeline.vae, "taesd": tiny_autoencoder(dtype=dtype, device=device)}
    for name in VAES:
        pipeline.register_modules(vae=vaes[name])
        prior = prior_of(pipeline, device)
        count = _counter(prior, options)
        for batch in wanted.batches:
            yield Job(
                case=f"augment/{wanted.prior}, {name} VAE",
                shape=f"batch {batch}, {{steps}} steps",
                batch=batch,
                steps=tuple(wanted.steps),
                ours={
                    label: Candidate(
                        open=partial(_ours, prior, batch, replace(options, **changes)),
                        dtype=changes["precision"],
                    )
                    for way in wanted.ways
                    for label, changes in OURS[way].items()
                },
                theirs={
                    f"diffusers {BASELINES[way]}, {str(dtype).removeprefix('torch.')}": Candidate(
                        open=partial(_theirs, pipeline, prior, batch, compiled=way == "compiled"), dtype=""
                    )
                    for way in wanted.ways
                    if way in BASELINES
                },
                flops=partial(count, batch),
                require_same=partial(require_alike, least=LEAST_COSINE),
            )


def _ours(prior: DiffusionPrior, batch: int, options: RuntimeOptions) -> Make:
    require_here(options)
    config = replace(Size(sources=1, variations=batch, steps=1).config(), scheduler="ddim")
    given = sources(1, prior.image_shape[0], variations=batch)
    opened = open_prior(prior, config, options)

    def make(steps: int) -> Tensor:
        with_steps = replace(config, steps=steps)
        batches = augment(given, opened, with_steps, seed=0, class_tokens=None, device=options.device)
        return ImageBatch.cat(list(batches)).images

    return make


def _theirs(pipeline: Any, prior: DiffusionPrior, batch: int, *, compiled: bool) -> Make:
    published = type(pipeline)(**pipeline.components, requires_safety_checker=False)
    published.set_progress_bar_config(disable=True)
    if compiled:
        mode = "reduce-overhead" if pipeline.device.type == "cuda" else "default"
        published.unet = torch.compile(pipeline.unet, mode=mode)
        published.vae = copy.copy(pipeline.vae)
        published.vae.decode = torch.compile(pipeline.vae.decode, mode=mode)
    given = sources(1, prior.image_shape[0], variations=batch)
    start = noise(given, Size(sources=1, variations=batch, steps=1), prior.latent_shape)
    start = start.to(pipeline.device, pipeline.dtype)

    def make(steps: int) -> Tensor:
        return published(
            to_pil(given.images),
            num_images_per_prompt=batch,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            latents=start,
            output_type="pt",
        ).images

    return make


def _counter(prior: DiffusionPrior, options: RuntimeOptions) -> Callable[[int, int], float]:
    """Return (batch, steps) -> floating-point operations per image; a batch embeds its source once."""
    plain = replace(options, runtime="torch", precision="bf16", compiled=False)

    @cache
    def of(images: int, steps: int) -> float:
        make = _ours(prior, images, plain)
        return flops(lambda: make(steps))

    def count(batch: int, steps: int) -> float:
        each = of(2, steps) - of(1, steps)
        return each + (of(1, steps) - each) / batch

    return count
