"""Image variations of synthesized images by a latent diffusion prior: K for each source, few steps.

A small sampler over diffusers' schedulers, VAE and UNet and a CLIP vision tower. Every image's noise comes
from its own seed, every scheduler is deterministic: an image does not depend on the batch it is made in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.config.augment import AugmentConfig
from engine.errors import NonFiniteError, UserError, more_precision
from engine.models.priors import PROMPT, ClipModel
from engine.runtime.micro_batch import MicroBatch
from engine.runtime.networks import OpenPrior
from engine.seeding import derive_seed, randn_per_image
from engine.stages.batch import ImageBatch
from engine.stages.solver import begin, build_scheduler


@dataclass(frozen=True, kw_only=True)
class SourceCodes:
    """What the sampler knows of the sources, computed once for each of them."""

    embeddings: Tensor  # float32 [S, 1, D], the vision tower's projected embedding, not normalised
    latents: Tensor | None  # float32 [S, C, h, w], scaled, or None where pure noise is the start


def class_tokens(clip: ClipModel, class_names: Sequence[str], *, cross_attention_dim: int) -> Tensor:
    """One conditioning token for each class, float32 [C, D]: the prompt's unit embedding times sqrt(D).

    Raises UserError where the text tower's D is not the UNet's `cross_attention_dim`.
    """
    embeddings = clip.embed_texts([PROMPT.format(name) for name in class_names])
    width = embeddings.shape[1]
    if width != cross_attention_dim:
        raise UserError(
            f"augment.class_condition: filter.model embeds texts in {width} dimensions, the UNet of "
            f"augment.prior takes {cross_attention_dim}; use a pair that match, or set it to none"
        )
    return embeddings * width**0.5


def encode_sources(
    sources: ImageBatch,
    prior: OpenPrior,
    config: AugmentConfig,
    device: torch.device,
    micro_batch: MicroBatch | None = None,
) -> SourceCodes:
    """Embeds each source once and, where `strength` < 1, takes the mode of its latent posterior."""
    micro_batch = micro_batch or MicroBatch("augment", config.images_at_once)

    def encode(piece: slice) -> tuple[Tensor, Tensor | None]:
        pixels = sources.images[piece].to(device).float() / 255
        embeddings = _embed(pixels, prior)
        if config.strength == 1:
            return embeddings, None
        assert prior.vae_encoder is not None, "the prior was opened for pure noise"
        return embeddings, prior.vae_encoder(images=_resize(pixels, prior.image_shape))["latents"]

    embeddings, latents = zip(*micro_batch.over(len(sources), encode), strict=True)
    return SourceCodes(
        embeddings=torch.cat(embeddings), latents=torch.cat(latents) if config.strength < 1 else None
    )


def augment(
    sources: ImageBatch,
    prior: OpenPrior,
    config: AugmentConfig,
    *,
    seed: int,
    class_tokens: Tensor | None,
    device: torch.device,
    micro_batch: MicroBatch | None = None,
) -> Iterator[ImageBatch]:
    """Yields the S * K variations in micro-batches, by default of the configured size, source by source.

    Source keys are multiples of K + 1; variation k of source s has key s + 1 + k, parent s, the source's
    label and size, and the seed `derive_seed(seed, "augment", s, k)`. class_tokens: [C, D], or None for the
    image token alone. Raises NonFiniteError, naming the keys, where an image is not finite, and
    OutOfMemoryError as MicroBatch does.
    """
    if not len(sources):
        return
    if (sources.keys % (config.variations + 1)).any():
        raise ValueError(f"source keys are no multiples of {config.variations + 1}: some would be shared")
    micro_batch = micro_batch or MicroBatch("augment", config.images_at_once)
    codes = encode_sources(sources, prior, config, device, micro_batch)
    scheduler = build_scheduler(prior, config)
    places = torch.arange(len(sources) * config.variations)

    def variations(piece: slice) -> ImageBatch:
        index = places[piece]
        rows, copies = index // config.variations, index % config.variations
        parents, labels = sources.keys[rows], sources.labels[rows]
        keys = parents + 1 + copies
        pairs = zip(parents.tolist(), copies.tolist(), strict=True)
        seeds = [derive_seed(seed, "augment", s, k) for s, k in pairs]
        noise = randn_per_image(seeds, prior.latent_shape).to(device)
        tokens = _tokens(codes.embeddings[rows], labels, class_tokens)
        anchors = None if codes.latents is None else codes.latents[rows]
        images = sample(prior, scheduler, config, noise, tokens, anchors)
        return ImageBatch(
            images=_to_uint8(images, sources.images.shape[2:], keys, prior.precision),
            labels=labels,
            keys=keys,
            parents=parents,
            seeds=torch.tensor(seeds, dtype=torch.int64),
        )

    yield from micro_batch.over(len(places), variations)


@torch.no_grad()
def sample(
    prior: OpenPrior,
    scheduler: Any,
    config: AugmentConfig,
    noise: Tensor,
    tokens: Tensor,
    anchors: Tensor | None,
) -> Tensor:
    """Denoises and decodes one micro-batch: float32 [B, 3, H, W], in [0, 1] but for overshoot.

    noise [B, C, h, w] standard normal; tokens [B, T, D]; anchors: source latents [B, C, h, w] to start from
    with noise (SDEdit, arXiv 2108.01073), or None for pure noise. Guidance as in arXiv 2207.12598: in
    the unconditional half the tokens that `guidance_of` names are zeros. Solver arithmetic is float32.
    """
    timesteps, latents = begin(scheduler, config, noise, anchors)
    guided = config.guidance_scale > 1
    if guided:
        unconditional_tokens = tokens.clone()
        unconditional_tokens[:, 1 if config.guidance_of == "class" else 0 :] = 0
        tokens = torch.cat([unconditional_tokens, tokens])
    for timestep, on_device in zip(timesteps, timesteps.to(noise.device).split(1), strict=True):
        model_input = scheduler.scale_model_input(latents, timestep)
        if guided:
            model_input = torch.cat([model_input, model_input])
        features = prior.time_features(on_device)
        output = prior.unet(latents=model_input, time_features=features, tokens=tokens)["prediction"]
        if guided:
            unconditional, conditional = output.chunk(2)
            output = unconditional + config.guidance_scale * (conditional - unconditional)
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return prior.vae_decoder(latents=latents)["images"]


def _tokens(embeddings: Tensor, labels: Tensor, class_tokens: Tensor | None) -> Tensor:
    """[B, 1, D], or [B, 2, D] with the class's token behind the image's."""
    if class_tokens is None:
        return embeddings
    return torch.cat([embeddings, class_tokens.to(embeddings)[labels][:, None]], 1)


def _embed(pixels: Tensor, prior: OpenPrior) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> [B, 1, D]; resized without antialiasing, as Lambda's model was trained."""
    size = (prior.encoder_size, prior.encoder_size)
    if pixels.shape[2:] != size:
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=False)
    return prior.image_encoder(images=pixels)["embeddings"][:, None]


def _resize(pixels: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(pixels.shape[2:]) == tuple(size):
        return pixels
    return F.interpolate(pixels, tuple(size), mode="bicubic", antialias=True).clamp(0, 1)


def _to_uint8(images: Tensor, size: Sequence[int], keys: Tensor, precision: str) -> Tensor:
    """Resizes to the sources' size and rounds half to even; uint8 [B, 3, H, W] on the CPU."""
    finite = images.isfinite().flatten(1).all(1).cpu()
    if not finite.all():
        broken = ", ".join(map(str, keys[~finite].tolist()))
        otherwise = "lower augment.guidance_scale, or check the weights of augment.prior"
        advice = more_precision(precision, "compute.runtime_precision", otherwise=otherwise)
        raise NonFiniteError(f"augment made non-finite images for keys {broken}; {advice}")
    return (_resize(images.clamp(0, 1), size) * 255).round().to(torch.uint8).cpu()
