"""diffusers' UNet2DConditionModel: Stable Diffusion 1.x, 2.x, image variation and SDXL.

Its sinusoids (of the timestep; in SDXL also of the image's sizes) are inputs, computed outside in float32: a
runtime in bf16 would round their angles, which go up to 1000 radians, by several radians.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from export.networks.axes import BATCHES, batch, resolution
from export.spec import Input, NetworkSpec

TIMESTEP = 500
"""In the middle of the noise schedule."""


class _Denoiser(nn.Module):
    """The UNet on the same weights, with sinusoids in the places of what they are taken of."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = copy.copy(unet)
        self.unet.get_time_embed = _as_given

    def forward(self, latents: Tensor, time_features: Tensor, tokens: Tensor) -> tuple[Tensor]:
        return (self.unet(latents, time_features, tokens, return_dict=False)[0],)


class _SizedDenoiser(_Denoiser):
    def __init__(self, unet: Any) -> None:
        super().__init__(unet)
        self.unet.get_aug_embed = self._augment

    def _augment(self, emb: Tensor, added_cond_kwargs: dict[str, Tensor], **_: Tensor) -> Tensor:
        return self.unet.add_embedding(added_cond_kwargs["features"].to(emb.dtype))

    def forward(  # type: ignore[override]
        self, latents: Tensor, time_features: Tensor, tokens: Tensor, added_features: Tensor
    ) -> tuple[Tensor]:
        added = {"features": added_features}
        return (self.unet(latents, time_features, tokens, added_cond_kwargs=added, return_dict=False)[0],)


def _as_given(sample: Tensor, timestep: Tensor) -> Tensor:
    return timestep.to(sample.dtype)


def unet_spec(unet: Any, *, num_tokens: int, batches: tuple[int, int, int] = BATCHES) -> NetworkSpec:
    """Latents [B, C, h, w], time_features [1, F], tokens [B, num_tokens, D] -> the prediction [B, C', h, w].

    SDXL takes added_features [B, P], too.
    """
    config = unet.config
    size = config.sample_size
    sides = (size, size) if isinstance(size, int) else size
    multiple = 2 ** (len(config.block_out_channels) - 1)
    height, width = (
        resolution(name, side, multiple=multiple)
        for name, side in zip(("height", "width"), sides, strict=True)
    )
    rows = batch(batches)
    inputs = [
        Input(name="latents", shape=(rows, config.in_channels, height, width)),
        Input(name="time_features", shape=(1, unet.time_proj.num_channels)),
        Input(name="tokens", shape=(rows, num_tokens, config.cross_attention_dim)),
    ]
    module: nn.Module = _Denoiser(unet)
    if config.addition_embed_type == "text_time":
        inputs.append(
            Input(name="added_features", shape=(rows, config.projection_class_embeddings_input_dim))
        )
        module = _SizedDenoiser(unet)
    return NetworkSpec(name="unet", module=module.eval(), inputs=tuple(inputs), outputs=("prediction",))


def time_features(unet: Any, timestep: Tensor) -> Tensor:
    """The sinusoids of one timestep: float32 [1, F], on the timestep's device."""
    return unet.time_proj(timestep.float().reshape(1))


def added_features(unet: Any, text_embeds: Tensor, time_ids: Tensor) -> Tensor:
    """SDXL's pooled text embedding [B, D] beside the sinusoids of its sizes [B, 6]: float32 [B, P]."""
    sinusoids = unet.add_time_proj(time_ids.float().flatten()).reshape(len(text_embeds), -1)
    return torch.cat([text_embeds, sinusoids], -1)
