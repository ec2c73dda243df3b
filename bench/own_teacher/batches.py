"""The batches of a training: real images with their labels, or noise with the teacher's logits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.own_teacher.image_folder import Images
from bench.own_teacher.training import Batches, Normalized


def labeled(images: Images, batch_size: int, *, seed: int, augment: bool) -> Batches:
    """Return shuffled batches of the images; with `augment`, `views` of them."""
    per_epoch = len(images.labels) // batch_size

    def batch(step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(images.labels), generator=_generator(seed, epoch))
        rows = order[place * batch_size : (place + 1) * batch_size]
        pixels = images.pixels[rows].float() / 255
        if augment:
            pixels = views(pixels, _generator(seed, step, 1))
        return pixels, images.labels[rows]

    return batch


def views(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Return each image [B, 3, H, W] on white: shifted, scaled, half of them mirrored, in other colours."""
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=rng)

    theta = torch.zeros(count, 2, 3)
    zoom, flip = uniform(0.8, 1.25), torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta[:, 0, 0], theta[:, 1, 1] = zoom * flip * uniform(0.9, 1.1), zoom
    theta[:, :, 2] = uniform(-0.15, 0.15, 2)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    moved = 1 + F.grid_sample(pixels - 1, grid, align_corners=False)
    gains = uniform(0.8, 1.2, 3, 1, 1)
    grey = moved.mean(1, keepdim=True)
    saturated = grey + uniform(0.4, 1.5, 1, 1, 1) * (moved - grey)
    return (1 - gains * (1 - saturated)).clamp(0, 1)


def noise(
    kind: str, shape: tuple[int, int, int, int], teacher: Normalized, *, seed: int, bf16: bool
) -> Batches:
    """Return random images [B, C, H, W], new ones each step, with the teacher's logits.

    Args:
        kind: `uniform` pixels; `smooth`, Gaussian noise below a random frequency, stretched to [0, 1]; or
            `both`, half of each.
    """
    teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rng = _generator(seed, step)
        pixels = torch.rand(shape, generator=rng)
        if kind == "smooth":
            pixels = smooth(shape, rng)
        elif kind == "both":
            pixels[::2] = smooth(shape, rng)[::2]
        images = pixels.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return pixels, teacher(images).float()

    return batch


def smooth(shape: tuple[int, int, int, int], rng: torch.Generator) -> Tensor:
    """Return Gaussian noise below a random frequency per image, stretched so that it fills [0, 1]."""
    size = shape[-1]
    spectrum = torch.fft.rfft2(torch.randn(shape, generator=rng))
    rows, columns = torch.fft.fftfreq(size) * size, torch.fft.rfftfreq(size) * size
    radius = torch.hypot(rows[:, None], columns[None])
    cutoff = torch.exp(math.log(size / 2) * torch.rand(shape[0], 1, 1, 1, generator=rng)).clamp(min=1.5)
    image = torch.fft.irfft2(spectrum * torch.exp(-((radius / cutoff) ** 2)), s=(size, size))
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    return (image - low) / (high - low)


def _generator(*seeds: int) -> torch.Generator:
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 1_000_003 + seed + 1) % 2**63
    return torch.Generator().manual_seed(mixed)
