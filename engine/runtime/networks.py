"""Describe the frozen networks for export, and open the prior and CLIP in a runtime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from engine.config.augment import AugmentConfig
from engine.config.compute import Runtime
from engine.models.classifier import Classifier
from engine.models.latent_diffusion import LatentDiffusion
from engine.models.priors import ClipModel, DiffusionPrior
from engine.models.text_to_image import TextToImage
from engine.runtime.base import Executable, RuntimeOptions
from engine.runtime.batching import batch_sizes
from engine.runtime.open import open_runtime
from export.networks import classifier as exported
from export.networks.clip import clip_vision_spec, open_clip_spec
from export.networks.unet import unet_spec
from export.networks.vae import vae_decoder_spec, vae_encoder_spec
from export.spec import NetworkSpec, Precision

NETWORKS = ("image_encoder", "vae_encoder", "vae_decoder", "unet")


@dataclass(frozen=True, kw_only=True)
class OpenPrior:
    """What sampling needs of a `StableDiffusionImageVariationPipeline`. Images are RGB in [0, 1]."""

    image_encoder: Executable
    """images [B, 3, s, s] -> embeddings [B, D]; s is `encoder_size`."""
    vae_encoder: Executable | None
    """images [B, 3, H, W] -> scaled latents [B, C, h, w]; None if sampling starts from pure noise."""
    vae_decoder: Executable
    """scaled latents -> images in about [0, 1], not clamped."""
    unet: Executable
    """latents, time_features [1, F], tokens [B, T, D] -> prediction."""
    time_features: Callable[[Tensor], Tensor]
    """Maps a timestep [1] to its embedding [1, F]."""
    latent_shape: tuple[int, int, int]
    image_shape: tuple[int, int]
    encoder_size: int
    scheduler_config: dict[str, Any]
    precision: Precision
    """The requested precision; a network that fails its parity check runs in a safer one."""


def prior_spec(name: str, prior: LatentDiffusion, config: AugmentConfig, runtime: Runtime) -> NetworkSpec:
    """Return the spec of one of NETWORKS for batches of `config.micro_batch`.

    A TextToImage has no image encoder.
    """
    rows = batch_sizes(runtime, config.images_at_once)
    if name == "image_encoder":
        assert isinstance(prior, DiffusionPrior)
        size = (prior.encoder_size, prior.encoder_size)
        return clip_vision_spec(
            prior.image_encoder, mean=prior.encoder_mean, std=prior.encoder_std, size=size, batches=rows
        )
    if name == "vae_encoder":
        return vae_encoder_spec(prior.vae, image_shape=prior.image_shape, batches=rows)
    if name == "vae_decoder":
        return vae_decoder_spec(prior.vae, latent_shape=prior.latent_shape, batches=rows)
    assert name == "unet"
    guided = 2 if config.guidance_scale > 1 else 1
    rows = batch_sizes(runtime, guided * config.images_at_once)
    num_tokens = prior.num_tokens if isinstance(prior, TextToImage) else config.num_tokens
    return unet_spec(prior.unet, num_tokens=num_tokens, batches=rows)


def open_prior(prior: DiffusionPrior, config: AugmentConfig, options: RuntimeOptions) -> OpenPrior:
    """Open the prior's networks. Raises ExportError as `open_runtime` does."""

    def opened(name: str) -> Executable:
        return open_runtime(prior_spec(name, prior, config, options.runtime), options)

    return OpenPrior(
        image_encoder=opened("image_encoder"),
        vae_encoder=opened("vae_encoder") if config.strength < 1 else None,
        vae_decoder=opened("vae_decoder"),
        unet=opened("unet"),
        time_features=prior.unet.time_proj,
        latent_shape=prior.latent_shape,
        image_shape=prior.image_shape,
        encoder_size=prior.encoder_size,
        scheduler_config=prior.scheduler_config,
        precision=options.precision,
    )


def clip_spec(clip: ClipModel, *, rows: int, runtime: Runtime) -> NetworkSpec:
    """Return the spec of CLIP's image tower for batches of up to `rows`."""
    sizes = batch_sizes(runtime, rows)
    return open_clip_spec(clip.network.visual, mean=clip.mean, std=clip.std, size=clip.size, batches=sizes)


def open_clip(clip: ClipModel, spec: NetworkSpec, options: RuntimeOptions) -> ClipModel:
    """Return `clip` with its image tower `spec` open in a runtime. Raises ExportError as `open_runtime`."""
    tower = open_runtime(spec, options)
    return replace(clip, image_tower=lambda pixels: tower(images=pixels)["embeddings"])


class _WithFeatures(nn.Module):
    def __init__(self, classifier: Classifier, paths: Sequence[str]) -> None:
        super().__init__()
        self.classifier, self.paths = classifier, tuple(paths)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, features = self.classifier.with_features(images, self.paths)
        return logits, *features


def classifier_spec(
    name: str,
    classifier: Classifier,
    feature_paths: Sequence[str],
    *,
    image_size: tuple[int, int],
    batches: tuple[int, int, int],
) -> NetworkSpec:
    """Return the spec of a teacher or student.

    Images [B, 3, H, W] in [0, 1] -> "logits", and the feature map of each path under the path. `batches` are
    the (min, tuned, max) rows.
    """
    module = _WithFeatures(classifier, feature_paths).eval()
    return exported.classifier_spec(
        name, module, image_size=image_size, features=feature_paths, batches=batches
    )
