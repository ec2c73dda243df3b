"""The tiny AutoencoderKL: 32x32 RGB <-> latents [8, 8, 8], trained on the public half."""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor

from engine.datasets.fashion_mnist import LabeledImages
from engine.pretraining.fit import Fit, fit
from engine.seeding import generator
from kernels.crop_flip import random_crop_flip

KL_WEIGHT = 1e-6
LATENT_CHANNELS = 8


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=32,
    )


def reconstruction_loss(autoencoder: AutoencoderKL, images: Tensor, noise: Tensor) -> Tensor:
    """Return L1 + MSE of the reconstruction of `images` (in [-1, 1]) + KL to N(0, 1), means over elements."""
    posterior = autoencoder.encode(images).latent_dist
    latents = posterior.mean + posterior.std * noise
    decoded = autoencoder.decode(latents).sample
    kl = 0.5 * (posterior.mean.pow(2) + posterior.var - 1 - posterior.logvar).sum((1, 2, 3)).mean()
    return F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + KL_WEIGHT * kl


def train_autoencoder(
    data: LabeledImages,
    accelerator: Accelerator,
    checkpoint: Path,
    *,
    epochs: int = 5,
    seed: int = 0,
) -> AutoencoderKL:
    """Train in float32, then set `scaling_factor` so that the scaled latents have unit variance.

    Layers this small gain nothing from bf16.
    """
    batch_size = 64
    torch.manual_seed(seed)
    autoencoder = new_autoencoder().to(accelerator.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=2e-3, weight_decay=0.01)

    def losses(epoch: int) -> Iterator[Tensor]:
        rng = generator(seed, "autoencoder", epoch)
        for index in torch.randperm(len(data.labels), generator=rng).split(batch_size):
            images = random_crop_flip(data.images[index], rng, pad=2).to(accelerator.device)
            noise = torch.randn(len(index), LATENT_CHANNELS, 8, 8, generator=rng).to(accelerator.device)
            yield reconstruction_loss(autoencoder, images.float() / 127.5 - 1, noise)

    config = Fit(
        epochs=epochs, steps_per_epoch=-(-len(data.labels) // batch_size), max_lr=2e-3, warmup=0.1, seed=seed
    )
    fit("autoencoder", autoencoder, optimizer, losses, config, checkpoint)
    autoencoder.eval()
    spread = encode(autoencoder, data.images[:4096], accelerator).std()
    autoencoder.register_to_config(scaling_factor=round(float(1 / spread), 5))
    return autoencoder


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, images: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the unscaled posterior means: uint8 [N, 3, 32, 32] -> float32 [N, 8, 8, 8] on the CPU."""
    rows = []
    for chunk in images.split(512):
        with accelerator.autocast():
            pixels = chunk.to(accelerator.device).float() / 127.5 - 1
            rows.append(autoencoder.encode(pixels).latent_dist.mean.float().cpu())
    return torch.cat(rows)
