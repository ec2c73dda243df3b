"""Train the embedded networks in order and write them in the formats that real ones are published in."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from engine.atomic import replacing
from engine.datasets.fashion_mnist import LabeledImages, load
from engine.models.pipeline_folder import IMAGE_VARIATION
from engine.pretraining import Part
from engine.pretraining.autoencoder import encode, train_autoencoder
from engine.pretraining.card import write_card
from engine.pretraining.clip import TowerPair, save_open_clip, save_vision_tower, train_clip
from engine.pretraining.denoiser import new_scheduler, train_denoiser
from engine.pretraining.teacher import TeacherPlan, train_teacher
from engine.recipes.load import load_recipe

TEACHERS: Mapping[Part, tuple[str, TeacherPlan]] = {
    "teacher": ("fashion-mnist", TeacherPlan(epochs=12, max_lr=0.1, crop_padding=4)),
    "lenet-5": ("lenet", TeacherPlan(epochs=20, max_lr=0.05, crop_padding=0)),
}
"""For each teacher's file, the recipe that describes its network, and its training."""


def make_assets(
    out: Path,
    work: Path,
    root: Path | None,
    accelerator: Accelerator,
    *,
    seed: int,
    only: Part | None = None,
) -> None:
    """Train the teachers on the private half and the priors on the public half, then write the card.

    With `only`, the other networks are already in `out`. Raises FileNotFoundError if the dataset is not on
    this machine.
    """
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)

    for part, (recipe, plan) in TEACHERS.items():
        if only in (None, part):
            config, data = load_recipe(recipe).teacher, load("private", root)
            teacher = train_teacher(config, data, accelerator, work / f"{part}.pt", plan, seed=seed)
            save_half(teacher.network.state_dict(), out / f"{part}.safetensors")
    if only in (None, "priors"):
        make_priors(out, work, root, accelerator, seed=seed)
    write_card(out, root, accelerator)


def make_priors(out: Path, work: Path, root: Path | None, accelerator: Accelerator, *, seed: int) -> None:
    """Train the CLIP towers, the autoencoder and the denoiser on the public half."""
    public = load("public", root)
    pair = train_clip(public, accelerator, work / "clip.pt", seed=seed)
    save_open_clip(pair, out / "open_clip")
    autoencoder = train_autoencoder(public, accelerator, work / "autoencoder.pt", seed=seed)
    latents = scaled_latents(autoencoder, public, accelerator)
    unet = train_denoiser(public, latents, pair, accelerator, work / "denoiser.pt", seed=seed)
    save_pipeline(out / "image-variation", autoencoder, unet, pair)


def save_half(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors: floating-point tensors in fp16, counters unchanged."""
    tensors = {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def scaled_latents(
    autoencoder: AutoencoderKL, data: LabeledImages, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """Return latents of unit variance, float32 [N, 8, 8, 8], of the images and of their mirror images."""
    factor = autoencoder.config.scaling_factor
    views = (data.images, data.images.flip(3))
    plain, mirrored = (encode(autoencoder, view, accelerator) * factor for view in views)
    return plain, mirrored


def save_pipeline(
    folder: Path, autoencoder: AutoencoderKL, unet: UNet2DConditionModel, pair: TowerPair
) -> None:
    """Write a StableDiffusionImageVariationPipeline folder without a safety checker; weights in fp16."""
    save_vision_tower(pair, folder)
    for name, module in (("vae", autoencoder), ("unet", unet)):
        module.to(torch.float16).save_pretrained(folder / name, safe_serialization=True)
    new_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": IMAGE_VARIATION,
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
