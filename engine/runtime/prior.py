"""A diffusion prior whose networks are open in a runtime."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engine.config.augment import AugmentConfig
from engine.config.compute import Runtime
from engine.models.latent_diffusion import LatentDiffusion
from engine.models.priors import DiffusionPrior
from engine.models.text_to_image import TextToImage
from engine.runtime.executable import Executable
from engine.runtime.opening import open_runtime
from engine.runtime.place import Place
from engine.runtime.sizes import batches
from export.networks.clip import clip_vision_spec
from export.networks.unet import unet_spec
from export.networks.vae import vae_decoder_spec, vae_encoder_spec
from export.spec import NetworkSpec, Precision

NETWORKS = ("image_encoder", "vae_encoder", "vae_decoder", "unet")


@dataclass(frozen=True, kw_only=True)
class OpenPrior:
    """What the sampler needs of a `StableDiffusionImageVariationPipeline`; images are RGB in [0, 1]."""

    image_encoder: Executable
    """images [B, 3, s, s] -> embeddings [B, D]; s is `encoder_size`."""
    vae_encoder: Executable | None
    """images [B, 3, H, W] -> scaled latents [B, C, h, w]; None where all start from pure noise."""
    vae_decoder: Executable
    """scaled latents -> images, in [0, 1] but for overshoot."""
    unet: Executable
    """latents, time_features [1, F], tokens [B, T, D] -> prediction."""
    time_features: Callable[[Tensor], Tensor]
    """A timestep, [1] -> [1, F]."""
    latent_shape: tuple[int, int, int]
    image_shape: tuple[int, int]
    encoder_size: int
    scheduler_config: dict[str, Any]
    precision: Precision
    """That was asked for; a network that it does not hold runs in a safer one."""


def prior_spec(name: str, prior: LatentDiffusion, config: AugmentConfig, runtime: Runtime) -> NetworkSpec:
    """One of NETWORKS, for batches of `config.micro_batch`; a TextToImage has no image encoder."""
    rows = batches(runtime, config.images_at_once)
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
    rows = batches(runtime, guided * config.images_at_once)
    num_tokens = prior.num_tokens if isinstance(prior, TextToImage) else config.num_tokens
    return unet_spec(prior.unet, num_tokens=num_tokens, batches=rows)


def open_prior(prior: DiffusionPrior, config: AugmentConfig, place: Place) -> OpenPrior:
    """The prior with its networks open. Raises ExportError as `open_runtime` does."""

    def opened(name: str) -> Executable:
        return open_runtime(prior_spec(name, prior, config, place.runtime), place)

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
        precision=place.precision,
    )
