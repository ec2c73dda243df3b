"""The tiny UNet: denoises latents [8, 8, 8], conditioned on an image token and optionally a class token.

Conditions are dropped at random, so that one network serves as the published image variation (image token),
as the class-anchored variation (image and class token) and as the unconditional half of guidance.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor

from engine.datasets.fashion_mnist import LabeledImages
from engine.models.priors import PROMPT
from engine.pretraining.autoencoder import LATENT_CHANNELS
from engine.pretraining.clip import EMBED_DIM, TowerPair
from engine.pretraining.fit import Fit, fit
from engine.pretraining.views import strong_view
from engine.seeding import generator

DROP_IMAGE, DROP_CLASS, IMAGE_ONLY_BATCHES = 0.3, 0.15, 0.2
NUM_VIEWS = 3


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 112),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=EMBED_DIM,
    )


def new_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


@torch.no_grad()
def image_tokens(pair: TowerPair, images: Tensor, seed: int) -> Tensor:
    """Return CLIP embeddings of the clean image and NUM_VIEWS - 1 strong views: float32 [N, NUM_VIEWS, D].

    The strong views teach the UNet to read embeddings of images that look like inverted ones.
    """
    rows = []
    for number, chunk in enumerate(images.split(500)):
        rng = generator(seed, "image-tokens", number)
        views = [chunk.float() / 255] + [strong_view(chunk, rng) for _ in range(NUM_VIEWS - 1)]
        pixels = [(view.to(pair.mean.device) - pair.mean) / pair.std for view in views]
        rows.append(torch.stack([pair.vision(pixel_values=p).image_embeds.float().cpu() for p in pixels], 1))
    return torch.cat(rows)


@torch.no_grad()
def class_tokens(pair: TowerPair) -> Tensor:
    """Return the tokens of the class names as `engine.stages.augment.class_tokens` does: float32 [C, D]."""
    return pair.embed_captions(PROMPT).cpu() * EMBED_DIM**0.5


def conditions(image: Tensor, label_token: Tensor, rng: torch.Generator) -> Tensor:
    """Return tokens [B, 1 or 2, D], each condition dropped (zeroed) at random."""
    batch = len(image)
    keep_image = torch.rand(batch, 1, generator=rng) >= DROP_IMAGE
    if float(torch.rand((), generator=rng)) < IMAGE_ONLY_BATCHES:
        return (image * keep_image)[:, None]
    keep_class = torch.rand(batch, 1, generator=rng) >= DROP_CLASS
    return torch.stack([image * keep_image, label_token * keep_class], 1)


def train_denoiser(
    data: LabeledImages,
    latents: tuple[Tensor, Tensor],
    pair: TowerPair,
    accelerator: Accelerator,
    checkpoint: Path,
    *,
    epochs: int = 13,
    seed: int = 0,
) -> UNet2DConditionModel:
    """Train by v-prediction MSE (Salimans and Ho 2022); return the moving average of the weights.

    `latents`: scaled, [N, 8, 8, 8], of the images and of their mirror images.
    """
    batch_size = 128
    torch.manual_seed(seed)
    unet = new_unet().to(accelerator.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=0.01)
    noise_schedule = DDPMScheduler.from_config(new_scheduler().config)
    images, classes = image_tokens(pair, data.images, seed), class_tokens(pair)

    def losses(epoch: int) -> Iterator[Tensor]:
        rng = generator(seed, "denoiser", epoch)
        for index in torch.randperm(len(data.labels), generator=rng).split(batch_size):
            mirrored = torch.rand(len(index), 1, 1, 1, generator=rng) < 0.5
            clean = torch.where(mirrored, latents[1][index], latents[0][index])
            noise = torch.randn(clean.shape, generator=rng)
            steps = torch.randint(0, 1000, (len(index),), generator=rng)
            view = torch.randint(NUM_VIEWS, (len(index),), generator=rng)
            tokens = conditions(images[index, view], classes[data.labels[index]], rng)
            noisy = noise_schedule.add_noise(clean, noise, steps)
            target = noise_schedule.get_velocity(clean, noise, steps)
            moved = [t.to(accelerator.device) for t in (noisy, steps, tokens, target)]
            with accelerator.autocast():
                predicted = unet(moved[0], moved[1], moved[2]).sample
            yield F.mse_loss(predicted.float(), moved[3])

    config = Fit(
        epochs=epochs,
        steps_per_epoch=-(-len(data.labels) // batch_size),
        max_lr=1e-3,
        warmup=0.05,
        ema_decay=0.999,
        seed=seed,
    )
    return fit("denoiser", unet, optimizer, losses, config, checkpoint).eval()
