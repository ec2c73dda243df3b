"""Small random Stable Diffusion pipelines, text to image, and a small TAESD, in the formats of diffusers."""

import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.tiny_priors import tiny_vae

IMAGE_SIZE = 16
NUM_TOKENS = 40
WIDTH, WIDTH_2 = 16, 24
"""Widths of the text encoders; XL has both."""
TIME_EMBED_DIM = 4


def put_tiny_autoencoder(folder: Path, *, latent_channels: int = 4) -> None:
    """Replace the `vae` of a pipeline folder by a small TAESD."""
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng():
        torch.manual_seed(2)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=latent_channels,
            scaling_factor=0.5,
        )
        torch.nn.init.normal_(vae.decoder.layers[-1].weight, std=0.3)  # otherwise images are nearly uniform
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")


def write_sd1(folder: Path) -> Path:
    """Write a StableDiffusionPipeline like 1.x: prompts of 40 tokens, 16x16 images, 4x8x8 latents."""
    return _write_sd(folder, attention_head_dim=4)


def write_sd2(folder: Path) -> Path:
    """Write a StableDiffusionPipeline like 2.x: linear projections, another head size at each depth."""
    return _write_sd(folder, attention_head_dim=[2, 4], use_linear_projection=True)


def write_sdxl(folder: Path) -> Path:
    """Write a StableDiffusionXLPipeline: two text encoders, and sizes with the second's pooled embedding."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    StableDiffusionXLPipeline(
        **_autoencoder_and_unet(
            cross_attention_dim=WIDTH + WIDTH_2,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_EMBED_DIM,
            projection_class_embeddings_input_dim=WIDTH_2 + 6 * TIME_EMBED_DIM,
            use_linear_projection=True,
            transformer_layers_per_block=[1, 2],
        ),
        **_text_encoders(),
        scheduler=EulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


def write_sdxl_refiner(folder: Path) -> Path:
    """Write a StableDiffusionXLImg2ImgPipeline with only the second text encoder and a score in the sizes."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

    StableDiffusionXLImg2ImgPipeline(
        **_autoencoder_and_unet(
            cross_attention_dim=WIDTH_2,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_EMBED_DIM,
            projection_class_embeddings_input_dim=WIDTH_2 + 5 * TIME_EMBED_DIM,
            use_linear_projection=True,
        ),
        **_text_encoders() | {"text_encoder": None, "tokenizer": None},
        scheduler=EulerDiscreteScheduler(),
        requires_aesthetics_score=True,
    ).save_pretrained(folder)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "sd1": write_sd1,
    "sd2": write_sd2,
    "sdxl": write_sdxl,
    "sdxl_refiner": write_sdxl_refiner,
}


def _write_sd(folder: Path, **unet: Any) -> Path:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    encoders = _text_encoders()
    StableDiffusionPipeline(
        **_autoencoder_and_unet(cross_attention_dim=WIDTH, **unet),
        text_encoder=encoders["text_encoder"],
        tokenizer=encoders["tokenizer"],
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def _autoencoder_and_unet(**unet: Any) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    fields: dict[str, Any] = {
        "sample_size": IMAGE_SIZE // 2,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = tiny_vae()
        return {"vae": vae, "unet": UNet2DConditionModel(**fields | unet)}


def _text_encoders() -> dict[str, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def config(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(_VOCABULARY),
            bos_token_id=_VOCABULARY[_BEGIN],
            eos_token_id=_VOCABULARY[_END],
            pad_token_id=_VOCABULARY[_END],
            max_position_embeddings=NUM_TOKENS,
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=width,
        )

    with torch.random.fork_rng():
        torch.manual_seed(1)
        return {
            "text_encoder": CLIPTextModel(config(WIDTH)),
            "text_encoder_2": CLIPTextModelWithProjection(config(WIDTH_2)),
            "tokenizer": _tokenizer(),
            "tokenizer_2": _tokenizer(),
        }


_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_CHARACTERS = [letter + end for letter in string.ascii_lowercase + "." for end in ("", "</w>")]
_VOCABULARY = {token: index for index, token in enumerate([*_CHARACTERS, _BEGIN, _END])}


def _tokenizer() -> Any:
    """Return a CLIP tokenizer with a token per letter."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=_VOCABULARY, merges=[], model_max_length=NUM_TOKENS)
