"""Build networks of a given size with random weights, quickly, to measure speed without a download."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)
NOISE_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Stable Diffusion's noise schedule."""

UNET_SD_1_5: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
"""Everything else is diffusers' default: 860 M weights."""
VAE_SD_1_5: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
ENCODER_VIT_L_14: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 768,
}

UNET_16M: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (64, 128, 192),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 256,
    "norm_num_groups": 32,
}
VAE_OF_4: dict[str, Any] = {
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "sample_size": 128,
}
"""Latents have a quarter of the image's side: 32x32 for 128x128 images."""
ENCODER_SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "patch_size": 16,
    "image_size": 128,
    "projection_dim": 256,
}


def variation_pipeline(
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    encoder: Mapping[str, Any],
    *,
    scheduler: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Any:
    """Return a StableDiffusionImageVariationPipeline; `scheduler` is the name of a diffusers class."""
    import diffusers
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    side = encoder["image_size"]
    with uninitialized(dtype, device):
        networks = {
            "unet": diffusers.UNet2DConditionModel(**unet),
            "vae": diffusers.AutoencoderKL(**vae),
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**encoder)),
        }
    pipeline = diffusers.StableDiffusionImageVariationPipeline(
        **{name: init_weights(network) for name, network in networks.items()},
        scheduler=getattr(diffusers, scheduler)(**NOISE_SCHEDULE),
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_autoencoder(*, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Any:
    """Return a network with TAESD's architecture."""
    from diffusers import AutoencoderTiny

    with uninitialized(dtype, device):
        return init_weights(AutoencoderTiny())


def open_clip_network(
    name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Any:
    """Return one of open_clip's architectures, such as ViT-B-32, without a download."""
    import open_clip

    with uninitialized(dtype, "cpu"):
        network = open_clip.create_model(name, precision="fp32")
    return init_weights(network.to(device, dtype))


@contextmanager
def uninitialized(dtype: torch.dtype, device: torch.device | str) -> Iterator[None]:
    """Build modules inside the block with this type and device, without initializing their weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), _SkipInit():
            yield
    finally:
        torch.set_default_dtype(before)


class _SkipInit(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def init_weights(network: nn.Module, *, seed: int = 0) -> Any:
    """Initialize and freeze `network`: weights of variance 1 / fan-in, zero biases.

    Activations stay in the range of fp16 at any depth. A seed gives the same weights on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(module, NORMS) and name == "weight":
                weight.fill_(1)
            elif weight.ndim == 1 and name.endswith("bias"):
                weight.zero_()
            else:
                fan_in = weight[0].numel() if weight.ndim > 1 else weight.numel()
                weight.copy_(_normal(weight, generator).mul_(fan_in**-0.5))
    return network.eval().requires_grad_(False)


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return standard normal values; larger tensors repeat the first 2^20."""
    values = torch.randn(min(like.numel(), 1 << 20), generator=generator)
    return values.to(like.dtype).repeat(-(-like.numel() // len(values)))[: like.numel()].view(like.shape)
