"""The foundation models that diversify and judge: a latent diffusion image-variation prior and open_clip."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import UserError
from engine.paths import resolve
from engine.stages.filter_config import LOCAL_DIR

PIPELINE = "StableDiffusionImageVariationPipeline"
PARTS = ("vae", "unet", "image_encoder")
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
    latent_shape: tuple[int, int, int]
    """Channels, height and width of one latent."""
    image_shape: tuple[int, int]
    """Height and width in pixels of the images the VAE decodes."""
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
    """Loads a pipeline folder (or hub id, `owner/name` or `owner/name@revision`) as diffusers writes them.

    Weights must be safetensors, whatever their stored precision; networks that `parts` leaves out are None.
    Raises UserError, naming `section` and the file, where the folder or a component is missing or unreadable
    or belongs to another pipeline.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would write over ours
    source, where, options = _locate(folder, section)
    _check_pipeline(source, where, options, section)

    def config(cls: Any, name: str) -> dict[str, Any]:
        with _reading(section, f"{where}/{name}"):
            return dict(cls.load_config(source, subfolder=name, **options))

    def part(cls: Any, name: str, dtype_option: str) -> Any:
        if name not in parts:
            return None
        with _reading(section, f"{where}/{name}"):
            return _load_part(cls, source, name, {dtype_option: torch.float32, **options}).to(device)

    with _reading(section, f"{where}/feature_extractor"):
        processor = CLIPImageProcessor.get_image_processor_dict(
            source, subfolder="feature_extractor", **options
        )[0]
        mean, std = tuple(processor["image_mean"]), tuple(processor["image_std"])
    with _reading(section, f"{where}/image_encoder"):
        encoder_config = CLIPVisionConfig.from_pretrained(source, subfolder="image_encoder", **options)
    scheduler_config = config(DDIMScheduler, "scheduler")
    unet_config, vae_config = config(UNet2DConditionModel, "unet"), config(AutoencoderKL, "vae")
    latent_shape = _latent_shape(unet_config)
    factor = 2 ** (len(vae_config["block_out_channels"]) - 1)
    vae, unet = part(AutoencoderKL, "vae", "torch_dtype"), part(UNet2DConditionModel, "unet", "torch_dtype")
    for network in filter(None, (vae, unet)):
        network.to(memory_format=torch.channels_last)
    return DiffusionPrior(
        vae=vae,
        unet=unet,
        image_encoder=part(CLIPVisionModelWithProjection, "image_encoder", "dtype"),
        scheduler_config=scheduler_config,
        latent_shape=latent_shape,
        image_shape=(latent_shape[1] * factor, latent_shape[2] * factor),
        encoder_size=encoder_config.image_size,
        encoder_mean=mean,
        encoder_std=std,
    )


def _latent_shape(config: dict[str, Any]) -> tuple[int, int, int]:
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return config["in_channels"], height, width


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
    """An open_clip model behind tensors: float32, frozen, in eval mode, on `device`."""

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
        """uint8 RGB [B, 3, H, W] -> unit vectors, float32 [B, D] on the model's device.

        Images of another size are resized by torch (bicubic, antialiased, clamped; aspect not kept).
        """
        pixels = images.to(self.device).float() / 255
        if pixels.shape[2:] != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return F.normalize(self.image_tower(pixels), dim=1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """C texts -> unit vectors, float32 [C, D] on the model's device."""
        tokens = self.tokenizer(list(texts)).to(self.device)
        return F.normalize(self.network.encode_text(tokens).float(), dim=1)


def load_clip(
    model: str, pretrained: str | None, device: torch.device | str, section: str = "filter.model"
) -> ClipModel:
    """Loads `local-dir:FOLDER`, `hf-hub:OWNER/NAME`, or an architecture with `pretrained`, a tag or a file.

    Its image tower is that of torch, in float32. Raises UserError, naming `section`, where the model or its
    weights cannot be read.
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
    network.eval().requires_grad_(False)
    preprocess = network.visual.preprocess_cfg
    size, mean, std = preprocess["size"], tuple(preprocess["mean"]), tuple(preprocess["std"])

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
            f"{section}: '{model}' is no open_clip architecture; give one, or hf-hub:OWNER/NAME, "
            f"or {LOCAL_DIR}FOLDER"
        )
    if not pretrained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)[:4])
        raise UserError(f"{section}: '{model}' needs pretrained weights: a file, or a tag such as {tags}")
