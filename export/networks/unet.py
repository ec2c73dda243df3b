"""diffusers' UNet2DConditionModel: Stable Diffusion 1.x, 2.x, image variation and SDXL.

The sinusoidal embeddings (of the timestep; in SDXL also of the image sizes) are inputs, computed outside in
float32: a bf16 runtime would round their angles, which go up to 1000 radians, by several radians.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from export.spec import BATCHES, Input, NetworkSpec, batch, resolution

TIMESTEP = 500
"""A timestep in the middle of the noise schedule."""


class _Denoiser(nn.Module):
    """The UNet with shared weights, taking sinusoidal embeddings instead of the timestep."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = copy.copy(unet)
        self.unet.get_time_embed = _as_given

    def forward(self, latents: Tensor, time_features: Tensor, tokens: Tensor) -> tuple[Tensor]:
        return (self.unet(latents, time_features, tokens, return_dict=False)[0],)


class _SizedDenoiser(_Denoiser):
    """SDXL's UNet, which also takes the pooled text embedding with the embeddings of the image sizes."""

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
    """Return the spec of a denoiser.

    Latents [B, C, h, w], time_features [1, F], tokens [B, num_tokens, D] -> prediction [B, C', h, w]. SDXL
    also takes added_features [B, P].
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
    """Return the sinusoidal embedding of one timestep, float32 [1, F] on the timestep's device."""
    return unet.time_proj(timestep.float().reshape(1))


def added_features(unet: Any, text_embeds: Tensor, time_ids: Tensor) -> Tensor:
    """Concatenate SDXL's text embedding [B, D] and the embeddings of its sizes [B, 6] to float32 [B, P]."""
    sinusoids = unet.add_time_proj(time_ids.float().flatten()).reshape(len(text_embeds), -1)
    return torch.cat([text_embeds, sinusoids], -1)
