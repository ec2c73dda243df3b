"""The foundation models that diversify and judge: a latent diffusion image-variation prior and open_clip."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import UserError
from engine.paths import resolve

PIPELINE = "StableDiffusionImageVariationPipeline"
LOCAL_DIR = "local-dir:"
PROMPT = "a photo of a {}."
"""How a class name is put to a text tower."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True, kw_only=True)
class DiffusionPrior:
    """The parts of a `StableDiffusionImageVariationPipeline`: float32, frozen, in eval mode, on a device."""

    vae: Any  # diffusers.AutoencoderKL
    unet: Any  # diffusers.UNet2DConditionModel
    image_encoder: Any  # transformers.CLIPVisionModelWithProjection
    scheduler_config: dict[str, Any]
    encoder_size: int
    """Side in pixels of the image encoder's input."""
    encoder_mean: tuple[float, ...]
    encoder_std: tuple[float, ...]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one latent."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels of the images the VAE decodes."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.latent_shape[1] * factor, self.latent_shape[2] * factor


def load_prior(folder: str, device: torch.device | str, section: str = "augment.prior") -> DiffusionPrior:
    """Loads a pipeline folder (or hub id, `owner/name` or `owner/name@revision`) as diffusers writes them.

    Weights must be safetensors, whatever their stored precision. Raises UserError, naming `section` and the
    file, where the folder or a component is missing or unreadable or belongs to another pipeline.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would write over ours
    source, where, options = _locate(folder, section)
    _check_pipeline(source, where, options, section)
    with _reading(section, f"{where}/scheduler"):
        scheduler_config = DDIMScheduler.load_config(source, subfolder="scheduler", **options)
    with _reading(section, f"{where}/feature_extractor"):
        processor = CLIPImageProcessor.get_image_processor_dict(
            source, subfolder="feature_extractor", **options
        )[0]
        mean, std = tuple(processor["image_mean"]), tuple(processor["image_std"])

    def part(cls: Any, name: str, dtype_option: str) -> Any:
        with _reading(section, f"{where}/{name}"):
            return _load_part(cls, source, name, {dtype_option: torch.float32, **options})

    encoder = part(CLIPVisionModelWithProjection, "image_encoder", "dtype")
    unet = part(UNet2DConditionModel, "unet", "torch_dtype")
    vae = part(AutoencoderKL, "vae", "torch_dtype")
    return DiffusionPrior(
        vae=vae.to(device, memory_format=torch.channels_last),
        unet=unet.to(device, memory_format=torch.channels_last),
        image_encoder=encoder.to(device),
        scheduler_config=dict(scheduler_config),
        encoder_size=encoder.config.image_size,
        encoder_mean=mean,
        encoder_std=std,
    )


def _locate(folder: str, section: str) -> tuple[str, str, dict[str, Any]]:
    """What `from_pretrained` shall be given, its name for the user, and options: a folder, else a hub id."""
    try:
        found = str(resolve(folder, section))
    except UserError:
        if not _HUB_ID.fullmatch(folder):
            raise
        name, _, revision = folder.partition("@")
        return name, f"{folder} (no folder here, so a hub id)", {"revision": revision} if revision else {}
    return found, found, {"local_files_only": True}


def _check_pipeline(source: str, where: str, options: dict[str, Any], section: str) -> None:
    from diffusers import DiffusionPipeline

    with _reading(section, f"{where}/model_index.json"):
        found = DiffusionPipeline.load_config(source, **options).get("_class_name")
    if found != PIPELINE:
        raise UserError(f"{section}: {where}/model_index.json is of a {found}; give a {PIPELINE} folder")


def _load_part(cls: Any, source: str, part: str, options: dict[str, Any]) -> Any:
    module, report = cls.from_pretrained(
        source, subfolder=part, use_safetensors=True, output_loading_info=True, **options
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, the first {missing[0]}")
    return module.eval().requires_grad_(False)


@contextmanager
def _reading(section: str, what: str) -> Iterator[None]:
    """Turns whatever the libraries raise while reading `what` into one line for the user."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{section}: cannot read {what}: {reason}") from error


@dataclass(frozen=True, kw_only=True)
class ClipModel:
    """An open_clip model behind tensors: float32, frozen, in eval mode, on one device."""

    network: Any  # open_clip.CLIP
    tokenizer: Callable[[list[str]], Tensor]
    size: tuple[int, int]
    """Height and width in pixels of the image tower's input."""
    mean: Tensor  # float32 [1, 3, 1, 1]
    std: Tensor  # float32 [1, 3, 1, 1]

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """uint8 RGB [B, 3, H, W] -> unit vectors, float32 [B, D] on the model's device.

        Images of another size are resized by torch (bicubic, antialiased, clamped; aspect not kept).
        """
        pixels = images.to(self.mean.device).float() / 255
        if pixels.shape[2:] != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        features = self.network.encode_image((pixels - self.mean) / self.std)
        return F.normalize(features.float(), dim=1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """C texts -> unit vectors, float32 [C, D] on the model's device."""
        tokens = self.tokenizer(list(texts)).to(self.mean.device)
        return F.normalize(self.network.encode_text(tokens).float(), dim=1)


def load_clip(
    model: str, pretrained: str | None, device: torch.device | str, section: str = "filter.model"
) -> ClipModel:
    """Loads `local-dir:FOLDER`, `hf-hub:OWNER/NAME`, or an architecture with `pretrained`, a tag or a file.

    Raises UserError, naming `section`, where the model or its weights cannot be read.
    """
    import open_clip

    name = model
    if model.startswith(LOCAL_DIR):
        name = f"{LOCAL_DIR}{resolve(model.removeprefix(LOCAL_DIR), section)}"
    elif not model.startswith("hf-hub:"):
        _check_architecture(model, pretrained, section)
    with _reading(section, model):
        network = open_clip.create_model(name, pretrained, device=device, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(name)
    preprocess = network.visual.preprocess_cfg
    size = preprocess["size"]

    def per_channel(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)

    return ClipModel(
        network=network.eval().requires_grad_(False),
        tokenizer=tokenizer,
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=per_channel(preprocess["mean"]),
        std=per_channel(preprocess["std"]),
    )


def _check_architecture(model: str, pretrained: str | None, section: str) -> None:
    import open_clip

    if model not in open_clip.list_models():
        raise UserError(
            f"{section}: '{model}' is no open_clip architecture; give one, or hf-hub:OWNER/NAME, "
            f"or {LOCAL_DIR}FOLDER"
        )
    if not pretrained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)[:4])
        raise UserError(f"{section}: '{model}' needs pretrained weights: a file, or a tag such as {tags}")
