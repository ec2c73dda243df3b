"""Load the autoencoder and the UNet of a pipeline folder, or any other part of it."""

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from engine.errors import UserError
from engine.models.pipeline_folder import XL, PipelineFolder
from engine.models.prior_faults import UNET, block_channels, sides, unet_fault, vae_fault


@dataclass(frozen=True, kw_only=True)
class LatentDiffusion:
    """A VAE and a UNet: float32, frozen, in eval mode, channels_last, on one device."""

    vae: Any  # diffusers.AutoencoderKL or AutoencoderTiny
    unet: Any  # diffusers.UNet2DConditionModel
    latent_shape: tuple[int, int, int]
    """Channels, height and width of one latent."""
    image_shape: tuple[int, int]
    """Height and width in pixels of the images the VAE decodes."""

    def place(self, device: torch.device) -> None:
        """Move the networks to `device`."""
        for network in vars(self).values():
            if isinstance(network, torch.nn.Module):
                network.to(device)


def load_latent_diffusion(
    pipeline: PipelineFolder, device: torch.device | str, parts: Collection[str]
) -> LatentDiffusion:
    """Load `vae` and `unet`; a network that is not in `parts` is None.

    Raises a UserError that names the key and the file if one is unreadable or they do not fit each other.
    """
    import diffusers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet_config = load_unet_config(pipeline)
    vae_config = load_config(pipeline, AutoencoderKL, "vae")
    channels, (height, width) = unet_config["in_channels"], sides(unet_config["sample_size"])
    if fault := vae_fault(vae_config, channels):
        raise UserError(f"{pipeline.section}: {pipeline.where}/vae {fault}")
    factor = 2 ** (len(block_channels(vae_config)) - 1)
    classes = {"vae": getattr(diffusers, vae_config["_class_name"]), "unet": UNet2DConditionModel}
    networks = {
        name: load_part(pipeline, cls, name, device) if name in parts else None
        for name, cls in classes.items()
    }
    for network in filter(None, networks.values()):
        network.to(memory_format=torch.channels_last)
    return LatentDiffusion(
        **networks,
        latent_shape=(channels, height, width),
        image_shape=(height * factor, width * factor),
    )


def load_unet_config(pipeline: PipelineFolder) -> dict[str, Any]:
    """Return the UNet's configuration with defaults filled in.

    Raises UserError if it needs inputs that are not supported.
    """
    from diffusers import UNet2DConditionModel

    stored = load_config(pipeline, UNet2DConditionModel, "unet")
    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
    unet = {"_class_name": UNET, **{name: each.default for name, each in parameters.items()}, **stored}
    if fault := unet_fault(unet, is_xl=pipeline.class_name in XL):
        raise pipeline.fault("unet/config.json", fault)
    return unet


def load_config(pipeline: PipelineFolder, cls: Any, part: str) -> dict[str, Any]:
    """Return the stored configuration of `part`, a diffusers `cls`. Raises UserError if it is unreadable."""
    with pipeline.reading(part):
        return dict(cls.load_config(pipeline.source, subfolder=part, **pipeline.options))


def load_part(pipeline: PipelineFolder, cls: Any, part: str, device: torch.device | str) -> Any:
    """Load one network in float32, frozen and in eval mode, from safetensors of any precision.

    Raises UserError if it is unreadable or weights are missing.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would overwrite ours
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
            raise ValueError(f"{len(missing)} weights are missing; the first is {missing[0]}")
        return network.eval().requires_grad_(False).to(device)
