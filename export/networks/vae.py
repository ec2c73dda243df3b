"""Encoder and decoder of a diffusion prior: diffusers' AutoencoderKL, or AutoencoderTiny (TAESD).

Latents are scaled as the UNet expects them: an AutoencoderKL's posterior times `scaling_factor`.
"""

from typing import Any

from torch import Tensor, nn

from export.spec import BATCHES, Input, NetworkSpec, batch, resolution


class _Encoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.scale = vae, float(vae.config.scaling_factor)
        self.tiny = not hasattr(vae, "quant_conv")

    def forward(self, images: Tensor) -> tuple[Tensor]:
        if self.tiny:
            return (self.vae.encode(images * 2 - 1).latents * self.scale,)
        return (self.vae.encode(images * 2 - 1).latent_dist.mode() * self.scale,)


class _Decoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.scale = vae, float(vae.config.scaling_factor)

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        return (self.vae.decode(latents / self.scale, return_dict=False)[0] / 2 + 0.5,)


def latent_factor(vae: Any) -> int:
    """Return the number of pixels per latent cell along one side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def vae_encoder_spec(
    vae: Any, *, image_shape: tuple[int, int], batches: tuple[int, int, int] = BATCHES
) -> NetworkSpec:
    """Return the spec of images [B, 3, H, W] in [0, 1] -> scaled mode of the posterior [B, C, h, w]."""
    height, width = (
        resolution(name, size, multiple=latent_factor(vae))
        for name, size in zip(("height", "width"), image_shape, strict=True)
    )
    images = Input(name="images", shape=(batch(batches), 3, height, width), values="uniform")
    return NetworkSpec(
        name="vae_encoder", module=_Encoder(vae).eval(), inputs=(images,), outputs=("latents",)
    )


def vae_decoder_spec(
    vae: Any, *, latent_shape: tuple[int, int, int], batches: tuple[int, int, int] = BATCHES
) -> NetworkSpec:
    """Return the spec of scaled latents [B, C, h, w] -> images [B, 3, H, W] in [0, 1], not clamped."""
    channels, *sides = latent_shape
    height, width = (resolution(name, size) for name, size in zip(("height", "width"), sides, strict=True))
    latents = Input(name="latents", shape=(batch(batches), channels, height, width))
    return NetworkSpec(
        name="vae_decoder", module=_Decoder(vae).eval(), inputs=(latents,), outputs=("images",)
    )
