"""Tiny versions of the loop's networks: the spec of each, and what its library computes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.networks.classifier import classifier_spec
from export.networks.clip import clip_vision_spec, open_clip_spec
from export.networks.unet import unet_spec
from export.networks.vae import vae_decoder_spec, vae_encoder_spec
from export.spec import NetworkSpec
from tests.tiny_priors import CLIP_SIZE, write_clip

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
TOLERANCE = {"torch": 2e-6, "fp32": 1e-4, "fp16": 2e-2}
SIDES = [{"height": 8, "width": 8}, {"height": 4, "width": 12}, {"height": 12, "width": 6}]
"""Sizes of latents; images have twice as many pixels along each side."""


@dataclass(frozen=True, kw_only=True)
class Case:
    spec: NetworkSpec
    original: nn.Module
    wanted: Callable[..., tuple[Tensor, ...]]
    """Computes the library's outputs from the inputs of the spec."""


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    """Return a module in eval mode with random biases and gains instead of the initial zeros and ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make().eval()
        for weight in module.parameters():
            if weight.ndim < 2:
                weight.data += 0.1 * torch.randn_like(weight)
    return module


def normalized(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def open_clip_tower(folder: Path) -> Case:
    import open_clip

    model = open_clip.create_model(f"local-dir:{write_clip(folder)}").eval()
    spec = open_clip_spec(model.visual, mean=MEAN, std=STD, size=(CLIP_SIZE, CLIP_SIZE))
    return Case(
        spec=spec,
        original=model,
        wanted=lambda images: (model.encode_image(normalized(images)),),
    )


def clip_vision(_: Path) -> Case:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=12,
    )
    model = seeded(lambda: CLIPVisionModelWithProjection(config))
    return Case(
        spec=clip_vision_spec(model, mean=MEAN, std=STD, size=(16, 16)),
        original=model,
        wanted=lambda images: (model(pixel_values=normalized(images)).image_embeds,),
    )


@cache
def autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.25,
        )
    )


@cache
def tiny_autoencoder() -> Any:
    from diffusers import AutoencoderTiny

    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return seeded(lambda: AutoencoderTiny(**blocks, **channels, scaling_factor=0.5))


def vae_encoder(_: Path) -> Case:
    vae = autoencoder()

    def wanted(images: Tensor) -> tuple[Tensor, ...]:
        return (vae.encode(2 * images - 1).latent_dist.mean * 0.25,)

    return Case(spec=vae_encoder_spec(vae, image_shape=(16, 16)), original=vae, wanted=wanted)


def vae_decoder(_: Path) -> Case:
    vae = autoencoder()

    def wanted(latents: Tensor) -> tuple[Tensor, ...]:
        return ((vae.decode(latents / 0.25).sample + 1) / 2,)

    return Case(spec=vae_decoder_spec(vae, latent_shape=(4, 8, 8)), original=vae, wanted=wanted)


def tiny_encoder(_: Path) -> Case:
    vae = tiny_autoencoder()

    def wanted(images: Tensor) -> tuple[Tensor, ...]:
        return (vae.encode(2 * images - 1).latents * 0.5,)

    return Case(spec=vae_encoder_spec(vae, image_shape=(16, 16)), original=vae, wanted=wanted)


def tiny_decoder(_: Path) -> Case:
    vae = tiny_autoencoder()

    def wanted(latents: Tensor) -> tuple[Tensor, ...]:
        return ((vae.decode(latents / 0.5).sample + 1) / 2,)

    return Case(spec=vae_decoder_spec(vae, latent_shape=(4, 8, 8)), original=vae, wanted=wanted)


def make_unet(**settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    fields: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": None,
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "cross_attention_dim": 12,
    }
    unet = seeded(lambda: UNet2DConditionModel(**(fields | settings)))
    for name, weight in unet.named_parameters():
        if "attn2.to_v" in name or "_embedding" in name:  # otherwise tokens and time have little effect
            nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(2))
    return unet


@cache
def sd_unet() -> Any:
    return make_unet()


@cache
def sdxl_unet() -> Any:
    return make_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=10 + 6 * 4,
        use_linear_projection=True,
    )


def plain_unet(_: Path) -> Case:
    """A UNet at timestep 500; its library ignores time_features."""
    unet = sd_unet()

    def wanted(latents: Tensor, _: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        return (unet(latents, 500, tokens).sample,)

    return Case(spec=unet_spec(unet, num_tokens=3), original=unet, wanted=wanted)


def sized_unet(_: Path) -> Case:
    """SDXL's UNet at timestep 500, with the sizes and text embeddings of `added`."""
    unet = sdxl_unet()

    def wanted(latents: Tensor, _: Tensor, tokens: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        text_embeds, time_ids = added(len(features))
        given = {"text_embeds": text_embeds, "time_ids": time_ids}
        return (unet(latents, 500, tokens, added_cond_kwargs=given).sample,)

    return Case(spec=unet_spec(unet, num_tokens=3), original=unet, wanted=wanted)


def added(rows: int) -> tuple[Tensor, Tensor]:
    """Return SDXL's text embeddings [B, 10] and its six sizes [B, 6]."""
    generator = torch.Generator().manual_seed(3)
    sizes = torch.randint(0, 1024, (rows, 6), generator=generator)
    return torch.randn(rows, 10, generator=generator), sizes


class Taps(nn.Module):
    """A classifier that returns its logits and two feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low = torch.relu(self.norm(self.first(images)))
        high = torch.relu(self.second(low))
        return self.head(high.mean((2, 3))), low, high


def classifier(_: Path) -> Case:
    model = seeded(Taps)
    spec = classifier_spec("teacher", model, image_size=(12, 12), features=("low", "high"))

    def wanted(images: Tensor) -> tuple[Tensor, ...]:
        low = model.norm(model.first(images)).relu()
        high = model.second(low).relu()
        return model.head(high.flatten(2).mean(2)), low, high

    return Case(spec=spec, original=model, wanted=wanted)


NETWORKS = {
    make.__name__: make
    for make in (
        open_clip_tower,
        clip_vision,
        vae_encoder,
        vae_decoder,
        tiny_encoder,
        tiny_decoder,
        plain_unet,
        sized_unet,
        classifier,
    )
}


def relative_error(given: Tensor, wanted: Tensor) -> float:
    assert given.shape == wanted.shape
    assert given.dtype == torch.float32
    assert wanted.norm() > 0.1
    return ((given - wanted).norm() / wanted.norm()).item()
