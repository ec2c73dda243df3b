"""Check the stored configurations of a prior's networks. A fault is the key, its value and the remedy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from engine.config.classifier import normalization_fault

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
UNET = "UNet2DConditionModel"
_MUST_BE_UNSET = (
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
"""Each adds an input to the UNet."""


def vae_fault(vae: Mapping[str, Any], channels: int) -> str | None:
    """Return why an autoencoder cannot serve a UNet with `channels` channels, else None."""
    name, latent_channels = vae.get("_class_name"), vae.get("latent_channels", 4)
    if name not in AUTOENCODERS:
        return f"is of type {name}; use an {' or '.join(AUTOENCODERS)}"
    if latent_channels != channels:
        return (
            f"makes {latent_channels} latent channels, but its unet takes {channels}; use networks that match"
        )
    for key in ("latents_mean", "latents_std", "shift_factor"):
        if vae.get(key) not in (None, 0):
            return f"has {key}, which is not supported; use a prior whose latents are only scaled"
    for key in ("in_channels", "out_channels"):
        if vae.get(key, 3) != 3:
            return f"has {key} {vae[key]}; use one for RGB images, with 3"
    if not is_positive(vae.get("scaling_factor", 1.0)):
        return f"has scaling_factor {vae['scaling_factor']!r}; set it to the number it was trained with"
    if not block_channels(vae):
        return "has no block_out_channels; set them to those it was trained with"
    if vae.get("upsampling_scaling_factor", 2) != 2:
        return f"has upsampling_scaling_factor {vae['upsampling_scaling_factor']}; use one with 2"
    return None


def block_channels(vae: Mapping[str, Any]) -> Sequence[int]:
    """Return the channels of an autoencoder's levels, each of half the side of the last; empty if unknown."""
    stored = vae.get("block_out_channels") or vae.get("decoder_block_out_channels")
    return stored if isinstance(stored, list | tuple) else ()


def unet_fault(unet: Mapping[str, Any], *, is_xl: bool) -> str | None:
    """Return why a UNet cannot be used, else None. It must map latents, a timestep and tokens to latents.

    `unet` must have all keys. With `is_xl`, the UNet also takes the sizes and the pooled text of SD XL.
    """
    if unet["_class_name"] != UNET:
        return f"_class_name is {unet['_class_name']!r}; use a prior with a {UNET}"
    if not all(_is_count(side) for side in sides(unet["sample_size"])):
        return (
            f"sample_size is {unet['sample_size']!r}; set it to the side of its latents, e.g. 64 for 512 "
            "pixels and an autoencoder that divides by 8"
        )
    in_channels, out_channels = unet["in_channels"], unet["out_channels"]
    if in_channels != out_channels:
        return (
            f"in_channels is {in_channels}, out_channels {out_channels}: it takes more than latents "
            "(inpainting, instructions, depth) or predicts a variance; use a prior that takes latents only"
        )
    for key in _MUST_BE_UNSET:
        if unet[key] is not None:
            return (
                f"{key} is {unet[key]!r}, an additional input that is not supported; use a prior without it"
            )
    if unet["addition_embed_type"] not in ((None, "text_time") if is_xl else (None,)):
        return (
            f"addition_embed_type is {unet['addition_embed_type']!r}, an additional input that is not "
            "supported; use a prior without it"
        )
    if unet["time_embedding_type"] != "positional":
        return f"time_embedding_type is {unet['time_embedding_type']!r}; use a prior with 'positional'"
    if not _is_count(unet["cross_attention_dim"]):
        return f"cross_attention_dim is {unet['cross_attention_dim']!r}; use a prior with one for all blocks"
    return None


def sides(sample_size: object) -> tuple[Any, Any]:
    """Return height and width as diffusers stores them: one number, or two."""
    if isinstance(sample_size, list | tuple) and len(sample_size) == 2:
        return sample_size[0], sample_size[1]
    return sample_size, sample_size


def extractor_fault(processor: Mapping[str, Any]) -> str | None:
    """Return why an image processor does not just scale to [0, 1] and normalize, else None."""
    for key in ("do_rescale", "do_normalize"):
        if not processor.get(key, True):
            return f"{key} is false, which is not supported; use a prior whose images are normalized"
    factor = processor.get("rescale_factor", 1 / 255)
    if not is_positive(factor) or not math.isclose(factor, 1 / 255, rel_tol=1e-4):
        return f"rescale_factor is {factor!r}; use a prior with 1/255"
    return channels_fault(processor, "image_mean", "image_std")


def channels_fault(stored: Mapping[str, Any], mean: str, std: str) -> str | None:
    """Return what is wrong with a mean and a std of three channels, stored under these keys, else None."""
    for key in (mean, std):
        values = stored.get(key)
        if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(is_number, values)):
            return f"{key} is {values!r}; set it to the three numbers that the encoder was trained with"
    if not all(map(is_positive, stored[std])):
        return f"{std} is {stored[std]!r}; set it to three numbers above 0"
    if fault := normalization_fault(stored[mean], stored[std]):
        return f"{mean} {list(stored[mean])} and {std} {list(stored[std])} {fault}"
    return None


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_positive(value: object) -> TypeGuard[float]:
    return is_number(value) and value > 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
