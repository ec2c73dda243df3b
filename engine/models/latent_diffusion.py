"""Autoencoder and UNet of a pipeline's folder, whatever conditions the UNet; and how any part is loaded."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from engine.errors import UserError
from engine.models.pipeline_folder import PipelineFolder

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")


@dataclass(frozen=True, kw_only=True)
class LatentDiffusion:
    """Networks are float32, frozen, in eval mode and channels_last, on a device."""

    vae: Any  # diffusers.AutoencoderKL or AutoencoderTiny
    unet: Any  # diffusers.UNet2DConditionModel
    latent_shape: tuple[int, int, int]
    """Channels, height and width of one latent."""
    image_shape: tuple[int, int]
    """Height and width in pixels of the images the VAE decodes."""


def load_latent_diffusion(
    pipeline: PipelineFolder, device: torch.device | str, parts: Collection[str]
) -> LatentDiffusion:
    """`vae` and `unet`, each None where `parts` leaves it out.

    Raises UserError, naming the key and the file, where either is unreadable or they do not fit.
    """
    import diffusers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet_config = load_config(pipeline, UNet2DConditionModel, "unet")
    vae_config = load_config(pipeline, AutoencoderKL, "vae")
    channels, height, width = latent_shape = _latent_shape(unet_config)
    if fault := _fault(vae_config, channels):
        raise UserError(f"{pipeline.section}: {pipeline.where}/vae {fault}")
    factor = 2 ** (len(vae_config["block_out_channels"]) - 1)
    classes = {"vae": getattr(diffusers, vae_config["_class_name"]), "unet": UNet2DConditionModel}
    networks = {
        name: load_part(pipeline, cls, name, device) if name in parts else None
        for name, cls in classes.items()
    }
    for network in filter(None, networks.values()):
        network.to(memory_format=torch.channels_last)
    return LatentDiffusion(
        **networks, latent_shape=latent_shape, image_shape=(height * factor, width * factor)
    )


def load_config(pipeline: PipelineFolder, cls: Any, part: str) -> dict[str, Any]:
    """The stored configuration of a part that is like diffusers' `cls`. Raises UserError as above."""
    with pipeline.reading(part):
        return dict(cls.load_config(pipeline.source, subfolder=part, **pipeline.options))


def load_part(pipeline: PipelineFolder, cls: Any, part: str, device: torch.device | str) -> Any:
    """One network, float32, frozen and in eval mode, from safetensors of whatever precision.

    Raises UserError where it is unreadable or weights are missing.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would write over ours
    with pipeline.reading(part):
        network, report = cls.from_pretrained(
            pipeline.source,
            subfolder=part,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **pipeline.options,
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"{len(missing)} weights are missing, the first {missing[0]}")
        return network.eval().requires_grad_(False).to(device)


def _latent_shape(config: dict[str, Any]) -> tuple[int, int, int]:
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return config["in_channels"], height, width


def _fault(vae: dict[str, Any], channels: int) -> str | None:
    """Why an autoencoder's configuration cannot serve a UNet that takes so many channels."""
    name, made = vae.get("_class_name"), vae.get("latent_channels", 4)
    if name not in AUTOENCODERS:
        return f"is of a {name}; put an {' or '.join(AUTOENCODERS)} in its place"
    if made != channels:
        return f"makes latents of {made} channels, its unet takes {channels}; use a pair that match"
    if vae.get("latents_mean") is not None:
        return "has latents_mean, which is not supported; use a prior whose latents are scaled alone"
    return None
