"""Load the foundation models: an image-variation diffusion prior and an open_clip model."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.config.filter import LOCAL_DIR
from engine.errors import UserError
from engine.models.latent_diffusion import (
    LatentDiffusion,
    load_config,
    load_latent_diffusion,
    load_part,
    load_unet_config,
)
from engine.models.noise_schedule import FILE, schedule_fault
from engine.models.pipeline_folder import IMAGE_VARIATION, INDEX, PipelineFolder, reading
from engine.models.prior_faults import channels_fault, extractor_fault
from engine.paths import resolve

PARTS = ("vae", "unet", "image_encoder")
CLIP_CONFIG = "open_clip_config.json"
PROMPT = "a photo of a {}."
"""The text tower's prompt for a class name."""


@dataclass(frozen=True, kw_only=True)
class DiffusionPrior(LatentDiffusion):
    """The parts of a `StableDiffusionImageVariationPipeline`: float32, frozen, in eval mode, on a device."""

    image_encoder: Any  # transformers.CLIPVisionModelWithProjection
    scheduler_config: dict[str, Any]
    encoder_size: int
    """Side in pixels of the image encoder's input."""
    encoder_mean: tuple[float, ...]
    encoder_std: tuple[float, ...]


def load_prior(
    folder: str,
    device: torch.device | str,
    section: str = "augment.prior",
    *,
    parts: Collection[str] = PARTS,
) -> DiffusionPrior:
    """Load an image-variation pipeline; its `vae` may also be an AutoencoderTiny (TAESD).

    `folder` is a folder or a hub id; see `PipelineFolder`. Weights must be safetensors, of any precision;
    networks that are not in `parts` are None. Raises a UserError that names `section` and the file if the
    folder or a component is missing, unreadable or belongs to another pipeline.
    """
    from diffusers import DDIMScheduler
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    pipeline = PipelineFolder.open(folder, section)
    if pipeline.class_name != IMAGE_VARIATION:
        raise UserError(
            f"{section}: {pipeline.where}/{INDEX} is for a {pipeline.class_name}; give a {IMAGE_VARIATION} "
            "folder (python -m export also takes Stable Diffusion 1.x, 2.x and XL)"
        )
    with pipeline.reading("feature_extractor"):
        processor = CLIPImageProcessor.get_image_processor_dict(
            pipeline.source, subfolder="feature_extractor", **pipeline.options
        )[0]
    if fault := extractor_fault(processor):
        raise pipeline.fault("feature_extractor/preprocessor_config.json", fault)
    with pipeline.reading("image_encoder"):
        encoder_config = CLIPVisionConfig.from_pretrained(
            pipeline.source, subfolder="image_encoder", **pipeline.options
        )
    if fault := _encoder_fault(encoder_config, load_unet_config(pipeline)):
        raise pipeline.fault("image_encoder/config.json", fault)
    scheduler_config = load_config(pipeline, DDIMScheduler, "scheduler")
    if fault := schedule_fault(scheduler_config):
        raise pipeline.fault(FILE, fault)
    encoder = None
    if "image_encoder" in parts:
        encoder = load_part(pipeline, CLIPVisionModelWithProjection, "image_encoder", device)
    return DiffusionPrior(
        **vars(load_latent_diffusion(pipeline, device, parts)),
        image_encoder=encoder,
        scheduler_config=scheduler_config,
        encoder_size=encoder_config.image_size,
        encoder_mean=tuple(processor["image_mean"]),
        encoder_std=tuple(processor["image_std"]),
    )


def _encoder_fault(encoder: Any, unet: Mapping[str, Any]) -> str | None:
    """Return why an image encoder's embedding cannot be the UNet's token, else None."""
    if not isinstance(encoder.image_size, int):
        return f"image_size is {encoder.image_size!r}; use an encoder for square images"
    if encoder.num_channels != 3:
        return f"num_channels is {encoder.num_channels}; use an encoder for RGB images, with 3"
    if encoder.projection_dim != unet["cross_attention_dim"]:
        return (
            f"projection_dim is {encoder.projection_dim}, cross_attention_dim in unet/config.json "
            f"{unet['cross_attention_dim']}; use networks that match"
        )
    return None


@dataclass(frozen=True, kw_only=True)
class ClipModel:
    """An open_clip model that takes and returns tensors: float32, frozen, in eval mode, on `device`."""

    network: Any  # open_clip.CLIP
    image_tower: Callable[[Tensor], Tensor]
    """float32 RGB [B, 3, *size] in [0, 1] -> embeddings, float32 [B, D]."""
    tokenizer: Callable[[list[str]], Tensor]
    size: tuple[int, int]
    """Height and width in pixels of the image tower's input."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Embed uint8 RGB [B, 3, H, W] as unit vectors, float32 [B, D] on the model's device.

        torch resizes images of another size (bicubic, antialiased, clamped; aspect ratio not kept).
        """
        pixels = images.to(self.device).float() / 255
        if pixels.shape[2:] != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return F.normalize(self.image_tower(pixels), dim=1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed C texts as unit vectors, float32 [C, D] on the model's device."""
        tokens = self.tokenizer(list(texts)).to(self.device)
        return F.normalize(self.network.encode_text(tokens).float(), dim=1)


def load_clip(
    model: str, pretrained: str | None, device: torch.device | str, section: str = "filter.model"
) -> ClipModel:
    """Load `local-dir:FOLDER`, `hf-hub:OWNER/NAME`, or an architecture whose `pretrained` is a tag or a file.

    The image tower runs in torch, in float32. Raises a UserError that names `section` if the model or its
    weights cannot be read.
    """
    import open_clip

    name = model
    if model.startswith(LOCAL_DIR):
        name = f"{LOCAL_DIR}{resolve(model.removeprefix(LOCAL_DIR), section)}"
    elif not model.startswith("hf-hub:"):
        _check_architecture(model, pretrained, section)
    with reading(section, model):
        network = open_clip.create_model(name, pretrained, device=device, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(name)
    network.eval().requires_grad_(False)
    preprocess = network.visual.preprocess_cfg
    if model.startswith(LOCAL_DIR):  # open_clip would fill in its defaults for missing values
        with reading(section, model):
            config = json.loads(Path(name.removeprefix(LOCAL_DIR), CLIP_CONFIG).read_text(encoding="utf-8"))
        preprocess = {**preprocess, "mean": None, "std": None, **(config.get("preprocess_cfg") or {})}
    if fault := channels_fault(preprocess, "mean", "std"):
        raise UserError(f"{section}: {model}/{CLIP_CONFIG}: in preprocess_cfg {fault}")
    size = network.visual.preprocess_cfg["size"]
    mean, std = tuple(preprocess["mean"]), tuple(preprocess["std"])

    def image_tower(pixels: Tensor) -> Tensor:
        return network.encode_image((pixels - _per_channel(mean, pixels)) / _per_channel(std, pixels))

    return ClipModel(
        network=network,
        image_tower=image_tower,
        tokenizer=tokenizer,
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=mean,
        std=std,
        device=torch.device(device),
    )


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(values).view(1, 3, 1, 1)


def _check_architecture(model: str, pretrained: str | None, section: str) -> None:
    import open_clip

    if model not in open_clip.list_models():
        raise UserError(
            f"{section}: '{model}' is not an open_clip architecture; give one, or hf-hub:OWNER/NAME, "
            f"or {LOCAL_DIR}FOLDER"
        )
    if not pretrained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)[:4])
        raise UserError(f"{section}: '{model}' needs pretrained weights: a file, or a tag such as {tags}")
