"""Augmentation: B variations of one source, from its uint8 pixels to theirs, with guidance.

The baseline's images stay floats on the GPU; to bring them home as bytes is left to ours alone.
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
from engine.runtime.place import Place
from engine.runtime.prior import open_prior
from engine.stages.augment import augment
from engine.stages.batch import ImageBatch

PRIORS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "sd-1.5": (UNET_SD_1_5, VAE_SD_1_5, ENCODER_VIT_L_14),
    "unet-16m": (UNET_16M, VAE_OF_4, ENCODER_SMALL),
}
VAES = ("full", "taesd")
GUIDANCE = 3.0
LEAST_COSINE = 0.98
"""Between images; random networks amplify what fp16 rounds."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to measure."""

    prior: str
    """Of PRIORS."""
    batches: Sequence[int]
    """Variations, or images, at once."""
    steps: Sequence[int]
    """Of the solver."""
    ways: Sequence[str]
    """Of `ways`."""
    dtype: torch.dtype
    """The baseline's."""


def jobs(wanted: Wanted, place: Place) -> Iterator[Job]:
    """One for each VAE and batch."""
    device, dtype = place.device, wanted.dtype
    pipeline = variation_pipeline(
        *PRIORS[wanted.prior], scheduler="DDIMScheduler", dtype=dtype, device=device
    )
    vaes = {"full": pipeline.vae, "taesd": tiny_autoencoder(dtype=dtype, device=device)}
    for name in VAES:
        pipeline.register_modules(vae=vaes[name])
        prior = prior_of(pipeline, device)
        count = _counter(prior, place)
        for batch in wanted.batches:
            yield Job(
                case=f"augment/{wanted.prior}, {name} VAE",
                shape=f"batch {batch}, {{steps}} steps",
                batch=batch,
                steps=tuple(wanted.steps),
                ours={
                    label: Candidate(
                        open=partial(_ours, prior, batch, replace(place, **changes)),
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


def _ours(prior: DiffusionPrior, batch: int, place: Place) -> Make:
    require_here(place)
    config = replace(Size(sources=1, variations=batch, steps=1).config(), scheduler="ddim")
    given = sources(1, prior.image_shape[0], variations=batch)
    opened = open_prior(prior, config, place)

    def make(steps: int) -> Tensor:
        of_steps = replace(config, steps=steps)
        made = augment(given, opened, of_steps, seed=0, class_tokens=None, device=place.device)
        return ImageBatch.cat(list(made)).images

    return make


def _theirs(pipeline: Any, prior: DiffusionPrior, batch: int, *, compiled: bool) -> Make:
    own = type(pipeline)(**pipeline.components, requires_safety_checker=False)
    own.set_progress_bar_config(disable=True)
    if compiled:
        mode = "reduce-overhead" if pipeline.device.type == "cuda" else "default"
        own.unet = torch.compile(pipeline.unet, mode=mode)
        own.vae = copy.copy(pipeline.vae)
        own.vae.decode = torch.compile(pipeline.vae.decode, mode=mode)
    given = sources(1, prior.image_shape[0], variations=batch)
    start = noise(given, Size(sources=1, variations=batch, steps=1), prior.latent_shape)
    start = start.to(pipeline.device, pipeline.dtype)

    def make(steps: int) -> Tensor:
        return own(
            to_pil(given.images),
            num_images_per_prompt=batch,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            latents=start,
            output_type="pt",
        ).images

    return make


def _counter(prior: DiffusionPrior, place: Place) -> Callable[[int, int], float]:
    """(batch, steps) -> floating-point operations of one image, whose source is embedded once a batch."""
    plain = replace(place, runtime="torch", precision="bf16", compiled=False)

    @cache
    def of(images: int, steps: int) -> float:
        make = _ours(prior, images, plain)
        return flops(lambda: make(steps))

    def count(batch: int, steps: int) -> float:
        each = of(2, steps) - of(1, steps)
        return each + (of(1, steps) - each) / batch

    return count
