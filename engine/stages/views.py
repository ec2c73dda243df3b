"""The teacher's outputs on views of images: what distillation needs of the teacher, computed once."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from engine.bank.codecs import Images
from engine.bank.rows import Int
from engine.bank.views import TeacherOutputs
from engine.config.views import StoredViews
from engine.errors import NonFiniteError
from engine.feed.feed import crop_batch
from engine.feed.views import crops, mix, partners
from engine.runtime.base import Executable
from engine.runtime.micro_batch import MicroBatch


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
        found = teacher(images=view_images(pixels, keys, rows, views, config, device))
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
