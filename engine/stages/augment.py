"""Make K variations of each synthesized image with a latent diffusion prior, in a few steps.

A small sampler for diffusers' schedulers, VAE and UNet, and a CLIP vision tower. The noise of an image comes
from its own seed and every scheduler is deterministic, so an image does not depend on the rest of its batch.
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
    """The sources as the prior's encoders see them. Rows are sources."""

    embeddings: Tensor  # float32 [S, 1, D], the vision tower's projected embedding, not normalised
    latents: Tensor | None  # float32 [S, C, h, w], scaled; None if sampling starts from pure noise


def class_tokens(clip: ClipModel, class_names: Sequence[str], *, cross_attention_dim: int) -> Tensor:
    """Return a conditioning token per class, float32 [C, D]: the prompt's unit embedding times sqrt(D).

    Raises UserError if the text tower's D is not the UNet's `cross_attention_dim`.
    """
    embeddings = clip.embed_texts([PROMPT.format(name) for name in class_names])
    width = embeddings.shape[1]
    if width != cross_attention_dim:
        raise UserError(
            f"augment.class_condition is text, but filter.model embeds texts in {width} dimensions and the "
            f"UNet of augment.prior takes {cross_attention_dim}; use models that match, or set it to none"
        )
    return embeddings * width**0.5


def encode_sources(
    sources: ImageBatch,
    prior: OpenPrior,
    config: AugmentConfig,
    device: torch.device,
    micro_batch: MicroBatch | None = None,
) -> SourceCodes:
    """Embed each source and, if `strength` < 1, encode it as the mode of its latent posterior."""
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
    """Yield the S * K variations, source by source, in micro-batches.

    Variation k of source s has key s + 1 + k, parent s, the source's label and size, and the seed
    `derive_seed(seed, "augment", s, k)`.

    Args:
        sources: their keys must be multiples of K + 1.
        class_tokens: [C, D], or None to condition on the image token only.
        micro_batch: by default one of the configured size.

    Raises:
        NonFiniteError: if an image has NaN or Inf; the message lists the keys.
        OutOfMemoryError: if a single image does not fit in memory.
    """
    if not len(sources):
        return
    if (sources.keys % (config.variations + 1)).any():
        raise ValueError(
            f"source keys are not multiples of {config.variations + 1}, so variations would share keys"
        )
    micro_batch = micro_batch or MicroBatch("augment", config.images_at_once)
    codes = encode_sources(sources, prior, config, device, micro_batch)
    scheduler = build_scheduler(prior, config)
    numbers = torch.arange(len(sources) * config.variations)

    def variations(piece: slice) -> ImageBatch:
        rows, copies = numbers[piece] // config.variations, numbers[piece] % config.variations
        parents, labels = sources.keys[rows], sources.labels[rows]
        keys = parents + 1 + copies
        pairs = zip(parents.tolist(), copies.tolist(), strict=True)
        seeds = [derive_seed(seed, "augment", s, k) for s, k in pairs]
        noise = randn_per_image(seeds, prior.latent_shape).to(device)
        tokens = _tokens(codes.embeddings[rows], labels, class_tokens)
        latents = None if codes.latents is None else codes.latents[rows]
        images = sample(prior, scheduler, config, noise, tokens, latents)
        return ImageBatch(
            images=_to_uint8(images, sources.images.shape[2:], keys, prior.precision),
            labels=labels,
            keys=keys,
            parents=parents,
            seeds=torch.tensor(seeds, dtype=torch.int64),
        )

    yield from micro_batch.over(len(numbers), variations)


@torch.no_grad()
def sample(
    prior: OpenPrior,
    scheduler: Any,
    config: AugmentConfig,
    noise: Tensor,
    tokens: Tensor,
    source_latents: Tensor | None,
) -> Tensor:
    """Denoise and decode one micro-batch.

    Guidance follows arXiv 2207.12598: in the unconditional half, the tokens named by `guidance_of` are zeros.
    The solver computes in float32.

    Args:
        noise: standard normal, [B, C, h, w].
        tokens: [B, T, D].
        source_latents: [B, C, h, w], which are noised and denoised (SDEdit, arXiv 2108.01073); None starts
            from pure noise.

    Returns:
        float32 [B, 3, H, W] in [0, 1], except for overshoot.
    """
    timesteps, latents = begin(scheduler, config, noise, source_latents)
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
    """Return the image tokens [B, 1, D], or image and class tokens [B, 2, D]."""
    if class_tokens is None:
        return embeddings
    return torch.cat([embeddings, class_tokens.to(embeddings)[labels][:, None]], 1)


def _embed(pixels: Tensor, prior: OpenPrior) -> Tensor:
    """Embed pixels [B, 3, H, W] in [0, 1] as [B, 1, D]; resize without antialiasing, like Lambda does."""
    size = (prior.encoder_size, prior.encoder_size)
    if pixels.shape[2:] != size:
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=False)
    return prior.image_encoder(images=pixels)["embeddings"][:, None]


def _resize(pixels: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(pixels.shape[2:]) == tuple(size):
        return pixels
    return F.interpolate(pixels, tuple(size), mode="bicubic", antialias=True).clamp(0, 1)


def _to_uint8(images: Tensor, size: Sequence[int], keys: Tensor, precision: str) -> Tensor:
    """Resize to `size` and round half to even: uint8 [B, 3, H, W] on the CPU. Raises NonFiniteError."""
    finite = images.isfinite().flatten(1).all(1).cpu()
    if not finite.all():
        broken = ", ".join(map(str, keys[~finite].tolist()))
        otherwise = "lower augment.guidance_scale, or check the weights of augment.prior"
        advice = more_precision(precision, "compute.runtime_precision", otherwise=otherwise)
        raise NonFiniteError(f"augment made non-finite images for keys {broken}; {advice}")
    return (_resize(images.clamp(0, 1), size) * 255).round().to(torch.uint8).cpu()
