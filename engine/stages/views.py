"""Views of images for distillation: new ones at each step, and stored ones with the teacher's outputs."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.bank.codecs import Images
from engine.bank.rows import Int
from engine.bank.views import TeacherOutputs
from engine.config.distill import DistillConfig
from engine.config.views import StoredViews
from engine.errors import NonFiniteError
from engine.feed.feed import crop_batch
from engine.feed.views import crops, mix, partners
from engine.runtime.base import Executable
from engine.runtime.micro_batch import MicroBatch

TURN, SHIFT = 0.75, 0.375
"""Largest turn of a warp in radians, and shift as a share of half the side, by its largest stretch."""


def varied(
    images: Tensor, config: DistillConfig, draw: Callable[[str], torch.Generator], *, mixes: bool
) -> Tensor:
    """Return new views of a batch [B, C, H, W] in [0, 1] for a teacher that labels them.

    Args:
        draw: returns the generator, on the CPU, of each kind of view.
        mixes: whether images are mixed and pasted into each other.
    """
    if config.warp:
        images = warped(images, config.warp, draw("warp"))
    if config.cutmix and mixes:
        images = pasted(images, config.cutmix, draw("cutmix"))
    if config.mixup and mixes:
        images = mixed(images, config.mixup, draw("mixup"))
    return images


def warped(images: Tensor, largest: float, draw: torch.Generator) -> Tensor:
    """Stretch, turn and shift each image at random; what comes from outside is black.

    Each axis is stretched by e^u, with u uniform in [-largest, largest].
    """
    count, shape = len(images), images.shape[2] / images.shape[3]
    uniform = largest * (2 * torch.rand(5, count, generator=draw, dtype=torch.float64) - 1)
    first, second, angle, *shifts = uniform.unbind()
    wide, high = first.exp(), second.exp()
    cos, sin = (TURN * angle).cos(), (TURN * angle).sin()
    across, down = (SHIFT * shift for shift in shifts)
    rows = torch.stack([cos * wide, -sin * high * shape, across, sin * wide / shape, cos * high, down], 1)
    grid = F.affine_grid(rows.view(count, 2, 3).to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).contiguous(memory_format=torch.channels_last)


def pasted(images: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """Replace the last images of a batch by their neighbours with a rectangle of their own pasted in.

    This is CutMix (Yun et al., ICCV 2019, arXiv 1905.04899) without its labels: the teacher labels the
    result. `share` of the images are replaced; the rectangle's share of the area is uniform in [0, 1).
    """
    count, (height, width) = round(share * len(images)), images.shape[2:]
    side, top, left = torch.rand(3, count, 1, generator=draw)
    inside = []
    for length, start in ((height, top), (width, left)):
        extent = (length * side.sqrt()).floor()
        first = (start * (length - extent + 1)).floor()
        position = torch.arange(length)
        inside.append((position >= first) & (position < first + extent))
    mask = (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(images.device)
    kept = len(images) - count
    return torch.cat([images[:kept], torch.where(mask, images[kept:], images.roll(1, 0)[kept:])])


def mixed(images: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """Mix the first images of a batch [B, ...] with their neighbours: λ x_i + (1 - λ) x_{i-1}, λ in [0, 1).

    This is mixup (Zhang et al., ICLR 2018, arXiv 1710.09412) without its labels: the teacher labels the
    result. `share` of the images are mixed.
    """
    count = round(share * len(images))
    weight = torch.rand(count, *[1] * (images.ndim - 1), generator=draw).to(images)
    return torch.cat([torch.lerp(images.roll(1, 0)[:count], images[:count], weight), images[count:]])


def ask(teacher: Executable, images: Tensor, *, flip: bool) -> dict[str, Tensor]:
    """Return the teacher's outputs on images [B, 3, H, W].

    With `flip`, they are float32 means over the images and their mirror images. Of a feature map, only the
    mean over the positions then has a meaning.
    """
    outputs = teacher(images=images)
    if not flip:
        return outputs
    mirrored = teacher(images=images.flip(3).contiguous(memory_format=torch.channels_last))
    return {name: (value.float() + mirrored[name].float()) / 2 for name, value in outputs.items()}


def teacher_outputs(
    images: Images,
    keys: Int,
    config: StoredViews,
    teacher: Executable,
    micro_batch: MicroBatch,
    device: torch.device,
    *,
    pooled: str | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> TeacherOutputs:
    """Return the teacher's outputs on the views of a shard's images.

    Args:
        images: all kept images of the shard, at least one, uint8 [N, H, W, 3].
        keys: int64 [N].
        teacher: returns logits and, if asked, the feature map at the path `pooled`.
        pooled: path of the feature map whose mean over the positions is stored, too.
        advance: called with the number of views done since the last call.

    Raises:
        NonFiniteError: if an output is NaN or Inf, or beyond float16.
    """
    pixels, count = torch.from_numpy(images), config.count

    def outputs(piece: slice) -> list[Tensor]:
        rows, views = np.divmod(np.arange(piece.start, piece.stop), count)
        seen = view_images(pixels, keys, rows, views, config, device)
        found = ask(teacher, seen, flip=config.teacher_flip)
        advance(len(rows))
        chosen = (
            [found["logits"]] if pooled is None else [found["logits"], found[pooled].float().mean((2, 3))]
        )
        return [each.half().cpu() for each in chosen]

    parts = zip(*micro_batch.over(len(images) * count, outputs), strict=True)
    columns = [torch.cat(part).unflatten(0, (len(images), count)) for part in parts]
    if not all(column.isfinite().all() for column in columns):
        raise NonFiniteError(
            "views: NaN, Inf or a number beyond 65504 in the teacher's outputs; use --distill.views 0"
        )
    logits, *rest = (column.numpy() for column in columns)
    return TeacherOutputs(logits, rest[0] if rest else None)


def view_images(
    pixels: Tensor, keys: Int, rows: Int, views: Int, config: StoredViews, device: torch.device
) -> Tensor:
    """Return views of a shard's images, float32 [B, 3, H, W] in [0, 1] on `device`, channels_last.

    Args:
        pixels: all kept images of the shard, uint8 [N, H, W, 3], on the CPU.
        keys: of these images, int64 [N].
        rows: positions of the wanted images, int64 [B].
        views: number of the view of each of them, int64 [B].
    """
    seed = config.seed % 2**64
    seeds, sizes = np.full(len(rows), seed, np.uint64), np.full(len(rows), len(pixels))
    mixed, positions, weights = partners(config, seeds, keys[rows], views, rows, sizes)
    reads = np.concatenate([rows, positions])
    numbers, seeds = np.concatenate([views, views[mixed]]), np.full(len(reads), seed, np.uint64)
    drawn = crops(config, seeds, keys[reads], numbers)
    read = pixels[torch.from_numpy(reads)].to(device)
    return mix(crop_batch(read, drawn, pad=config.crop_padding), mixed, weights).permute(0, 3, 1, 2)
