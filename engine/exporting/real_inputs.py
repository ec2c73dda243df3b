"""Real inputs for the proof: a few images, and what the prior's own encoders make of them and of prompts."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.datasets.config import EvaluateConfig
from engine.errors import UserError
from engine.exporting.networks import Networks
from export.networks.unet import TIMESTEP, added_features, time_features
from export.parity import reference
from export.spec import NetworkSpec

AESTHETIC_SCORE = 6.0
"""What diffusers asks of SDXL's refiner."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def read_images(folder: str | None, evaluate: EvaluateConfig, count: int) -> tuple[list[Tensor], str | None]:
    """`count` RGB images [3, H, W] in [0, 1], of the folder or of Fashion-MNIST's public half.

    Or none and the reason. Raises UserError for a folder without images.
    """
    if folder is not None:
        return _from_folder(Path(folder), count), None
    if evaluate.dataset != "fashion-mnist":
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
        raise UserError(f"--images {folder} holds no {', '.join(sorted(SUFFIXES))}; give another folder")
    images = []
    for path in files:
        try:
            pixels = np.asarray(Image.open(path).convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"--images: {path} is not an image that can be read; remove it") from error
        images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255)
    return images


class RealInputs:
    """The inputs of each network for real images; a latent diffusion model's networks feed one another."""

    def __init__(self, images: list[Tensor], networks: Networks) -> None:
        self._images, self._networks = images, networks
        self._made: dict[str, Tensor] = {}

    def of(self, spec: NetworkSpec, sizes: dict[str, int]) -> dict[str, Tensor]:
        """By input name, as many rows as there are images, other axes of `sizes`; `spec` has its module."""
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
        return self._networks.prompts(len(self._images))

    def _added_features(self, unet: Any) -> Tensor:
        assert self._prompts is not None
        text_embeds = self._prompts[1]
        assert text_embeds is not None
        width = unet.config.projection_class_embeddings_input_dim - text_embeds.shape[1]
        ids = _time_ids(width // unet.config.addition_time_embed_dim, self._networks.prior().image_shape)
        return added_features(unet, text_embeds, torch.tensor([ids] * len(text_embeds)))

    def _output(self, network: str) -> Tensor:
        if network not in self._made:
            spec = self._networks.load(network)
            (self._made[network],) = reference(spec, self.of(spec, {})).values()
        return self._made[network]

    def _resized(self, size: tuple[int, ...]) -> Tensor:
        return torch.cat(
            [
                F.interpolate(image[None], size, mode="bicubic", antialias=True).clamp(0, 1)
                for image in self._images
            ]
        )


def _time_ids(count: int, size: tuple[int, int]) -> tuple[float, ...]:
    """SDXL's six: original size, corner of the crop, target size; its refiner's five end with a score."""
    return (*size, 0, 0, *size) if count == 6 else (*size, 0, 0, AESTHETIC_SCORE)
