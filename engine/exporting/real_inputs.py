"""Real inputs for the parity check: images, and what the prior's encoders compute from them and prompts."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.config.evaluate import FASHION_MNIST, EvaluateConfig
from engine.errors import UserError
from engine.exporting.networks import Networks
from export.networks.unet import TIMESTEP, added_features, time_features
from export.parity import reference
from export.spec import NetworkSpec

AESTHETIC_SCORE = 6.0
"""The score that diffusers conditions SDXL's refiner on by default."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def read_images(folder: str | None, evaluate: EvaluateConfig, count: int) -> tuple[list[Tensor], str | None]:
    """Return up to `count` RGB images [3, H, W] in [0, 1], or no images and the reason.

    The images come from `folder`, or from the public half of Fashion-MNIST if the recipe evaluates on it.
    Raises UserError for a folder without images.
    """
    if folder is not None:
        return _from_folder(Path(folder), count), None
    if evaluate.data != FASHION_MNIST:
        return [], "no real images: give a folder with --images"
    from engine.datasets import fashion_mnist

    try:
        public = fashion_mnist.load("public", Path(evaluate.root) if evaluate.root else None)
    except FileNotFoundError as error:
        return [], f"no real images: {error}; give a folder with --images"
    return list(public.images[:count].float() / 255), None


def _from_folder(folder: Path, count: int) -> list[Tensor]:
    from PIL import Image, UnidentifiedImageError

    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)[:count]
    if not files:
        raise UserError(f"--images {folder} holds no {', '.join(sorted(SUFFIXES))}; choose another folder")
    images = []
    for path in files:
        try:
            pixels = np.asarray(Image.open(path).convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"--images: {path} cannot be read as an image; remove it") from error
        images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255)
    return images


class RealInputs:
    """Computes each network's inputs from real images; the prior's networks feed one another."""

    def __init__(self, images: list[Tensor], networks: Networks) -> None:
        self._images, self._networks = images, networks
        self._outputs: dict[str, Tensor] = {}

    def inputs(self, spec: NetworkSpec, sizes: dict[str, int]) -> dict[str, Tensor]:
        """Return the inputs of `spec` by name, one row per image; `sizes` are those of the other axes."""
        example = spec.example(sizes | {"batch": len(self._images)})
        return {name: self._input(name, like, spec) for name, like in example.items()}

    def _input(self, name: str, like: Tensor, spec: NetworkSpec) -> Tensor:
        if name == "images":
            return self._resized(tuple(like.shape[2:]))
        if name == "time_features":
            return time_features(spec.module.unet, torch.tensor(TIMESTEP))
        if name == "latents":
            latents = self._output("vae_encoder")[..., : like.shape[2], : like.shape[3]]
            return latents if spec.name == "vae_decoder" else (latents + like) / 2**0.5
        if name == "added_features":
            return self._added_features(spec.module.unet)
        assert name == "tokens", name
        if self._prompts is not None:
            return self._prompts[0]
        return self._output("image_encoder")[:, None].expand_as(like).contiguous()

    @cached_property
    def _prompts(self) -> tuple[Tensor, Tensor | None] | None:
        return self._networks.embed_prompts(len(self._images))

    def _added_features(self, unet: Any) -> Tensor:
        assert self._prompts is not None
        text_embeds = self._prompts[1]
        assert text_embeds is not None
        width = unet.config.projection_class_embeddings_input_dim - text_embeds.shape[1]
        ids = _time_ids(width // unet.config.addition_time_embed_dim, self._networks.load_prior().image_shape)
        return added_features(unet, text_embeds, torch.tensor([ids] * len(text_embeds)))

    def _output(self, network: str) -> Tensor:
        if network not in self._outputs:
            spec = self._networks.load(network)
            (self._outputs[network],) = reference(spec, self.inputs(spec, {})).values()
        return self._outputs[network]

    def _resized(self, size: tuple[int, ...]) -> Tensor:
        return torch.cat(
            [
                F.interpolate(image[None], size, mode="bicubic", antialias=True).clamp(0, 1)
                for image in self._images
            ]
        )


def _time_ids(count: int, size: tuple[int, int]) -> tuple[float, ...]:
    """Return SDXL's time ids.

    The base model takes six: original size, corner of the crop, target size. Its refiner takes five: the
    first four and an aesthetic score.
    """
    return (*size, 0, 0, *size) if count == 6 else (*size, 0, 0, AESTHETIC_SCORE)
