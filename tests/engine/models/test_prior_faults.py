"""Stored network configurations that the engine cannot use are named with key, value and what to change."""

import inspect
from typing import Any

import pytest

from engine.models.prior_faults import extractor_fault, unet_fault, vae_fault

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "latent_channels": 4,
    "block_out_channels": [8, 16],
    "scaling_factor": 0.18215,
}
EXTRACTOR: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.2] * 3, "rescale_factor": 1 / 255}


def _unet(**changes: Any) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
    defaults = {name: each.default for name, each in parameters.items()}
    return {**defaults, "_class_name": "UNet2DConditionModel", "sample_size": 8, **changes}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "UNet2DModel"}, "_class_name is 'UNet2DModel'"),
        ({"sample_size": None}, "sample_size is None; set it to the side of its latents"),
        ({"sample_size": [8, 8, 8]}, "sample_size is [8, 8, 8]"),
        ({"in_channels": 9}, "in_channels is 9, out_channels 4: it takes more than latents"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep', an additional input"),
        ({"num_class_embeds": 10}, "num_class_embeds is 10"),
        ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type is 'image_proj'"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        ({"cross_attention_dim": [16, 32]}, "cross_attention_dim is [16, 32]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_unet_of_other_inputs(change: dict[str, Any], said: str) -> None:
    assert said in (unet_fault(_unet(**change), is_xl=False) or "")


def test_a_unet_that_fits() -> None:
    assert unet_fault(_unet(), is_xl=False) is None
    assert unet_fault(_unet(sample_size=[8, 16]), is_xl=False) is None
    assert unet_fault(_unet(addition_embed_type="text_time"), is_xl=True) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latents_std": [1.0] * 4}, "has latents_std"),
        ({"shift_factor": 0.1}, "has shift_factor"),
        ({"scaling_factor": None}, "has scaling_factor None"),
        ({"in_channels": 1}, "has in_channels 1"),
        ({"block_out_channels": None}, "has no block_out_channels"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_autoencoder_of_other_latents(change: dict[str, Any], said: str) -> None:
    assert vae_fault(VAE, 4) is None
    assert said in (vae_fault(VAE | change, 4) or "")


def test_a_tiny_autoencoder_as_its_hub_page_stores_it() -> None:
    stored = {"_class_name": "AutoencoderTiny", "decoder_block_out_channels": [64] * 4, "shift_factor": 0.0}
    assert vae_fault(stored, 4) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_mean": None}, "image_mean is None"),
        ({"image_mean": [0.5]}, "image_mean is [0.5]; set it to the three numbers"),
        ({"image_std": [0.2, 0.2, 0]}, "image_std is [0.2, 0.2, 0]; set it to three numbers above 0"),
        ({"do_normalize": False}, "do_normalize is false"),
        ({"rescale_factor": 1}, "rescale_factor is 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_extractor_that_scales_otherwise(change: dict[str, Any], said: str) -> None:
    assert extractor_fault(EXTRACTOR) is None
    assert said in (extractor_fault(EXTRACTOR | change) or "")
