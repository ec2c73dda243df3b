"""Load Stable Diffusion 1.x, 2.x and XL, which are conditioned on a prompt's tokens, for export."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.latent_diffusion import LatentDiffusion, load_latent_diffusion, load_unet_config
from engine.models.pipeline_folder import PipelineFolder

PARTS = ("vae", "unet")
_UNUSED = ("vae", "unet", "safety_checker", "feature_extractor", "image_encoder")
"""Components that a prompt does not pass through."""


@dataclass(frozen=True, kw_only=True)
class TextToImage(LatentDiffusion):
    """The networks of a `TEXT_TO_IMAGE` pipeline."""

    num_tokens: int
    """Number of tokens of a padded prompt."""


def load_text_to_image(
    pipeline: PipelineFolder, device: torch.device | str, *, parts: Collection[str] = PARTS
) -> TextToImage:
    """Load a pipeline; networks that are not in `parts` are None. Raises UserError as `load_prior` does."""
    from transformers import CLIPTextConfig

    configs = []
    for encoder in _text_encoders(pipeline):
        with pipeline.reading(encoder):
            configs.append(
                CLIPTextConfig.from_pretrained(pipeline.source, subfolder=encoder, **pipeline.options)
            )
    width, unet_config = sum(config.hidden_size for config in configs), load_unet_config(pipeline)
    if width != unet_config["cross_attention_dim"]:
        names = " and ".join(f"{name}/config.json" for name in _text_encoders(pipeline))
        raise pipeline.fault(
            "unet/config.json",
            f"cross_attention_dim is {unet_config['cross_attention_dim']}, but hidden_size in {names} is "
            f"{width}; use networks that match",
        )
    networks = load_latent_diffusion(pipeline, device, parts)
    return TextToImage(**vars(networks), num_tokens=configs[-1].max_position_embeddings)


def _text_encoders(pipeline: PipelineFolder) -> list[str]:
    """Return the names of the pipeline's text encoders; XL's refiner has only the second."""
    names = ("text_encoder", "text_encoder_2")
    return [name for name in names if any(pipeline.index.get(name) or ())]


def embed_prompts(pipeline: PipelineFolder, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """Encode N prompts: tokens, float32 [N, T, D], and for XL the pooled embedding [N, P], on the CPU.

    Raises UserError if a tokenizer or text encoder is unreadable.
    """
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()  # it would overwrite ours
    without: dict[str, object] = {name: None for name in _UNUSED if name in pipeline.index}
    if "safety_checker" in without:
        without["requires_safety_checker"] = False
    with pipeline.reading("text_encoder"), torch.no_grad():
        encoders = DiffusionPipeline.from_pretrained(
            pipeline.source, use_safetensors=True, dtype=torch.float32, **without, **pipeline.options
        )
        tokens, _, *pooled = encoders.encode_prompt(
            list(prompts), device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return tokens, pooled[0] if pooled else None
