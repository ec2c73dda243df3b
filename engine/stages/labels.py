"""Choose the classes of each batch from the seed and the batch's number, and count the classes covered."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.config.recipe import Recipe
from engine.progress import counted
from engine.seeding import derive_seed, generator

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: modulo 2^64, any number of its multiples is spread evenly."""
CHUNK = 1 << 16
"""Labels counted at once."""
MORE_SHARDS = "give more --shards"
MORE_BATCHES = "raise schedule.init_batches or synthesize.batch_size"


def batch_labels(
    number: int, *, batch_size: int, num_classes: int, seed: int, weights: Sequence[float] | None = None
) -> Tensor:
    """Return the labels of batch `number`, int64 [batch_size].

    Without `weights`, all classes are equally frequent: their counts differ by at most one within a batch and
    over batches 0 to n, and by at most two over any consecutive batches. With `weights`, [num_classes], none
    negative, class c has the share weights[c] / sum(weights) of any consecutive labels, up to a few images.
    """
    if weights is not None:
        start = number * batch_size
        return torch.from_numpy(_weighted(np.arange(start, start + batch_size), weights, seed))
    # Batches cycle through one permutation of the classes until its end is also the end of a batch.
    round_batches = math.lcm(batch_size, num_classes) // batch_size
    turn, batch = divmod(number, round_batches)
    order = torch.randperm(num_classes, generator=generator(seed, "labels", turn))
    return order[(batch * batch_size + torch.arange(batch_size)) % num_classes]


def classes_covered(
    batches: int, *, batch_size: int, num_classes: int, seed: int, weights: Sequence[float] | None = None
) -> int:
    """Return the number of classes in the first `batches` batches."""
    images = batches * batch_size
    if weights is None:
        return min(images, num_classes)
    wanted = sum(weight > 0 for weight in weights)
    seen = np.zeros(num_classes, np.bool_)
    for start in range(0, images, CHUNK):
        seen[_weighted(np.arange(start, min(start + CHUNK, images)), weights, seed)] = True
        if seen.sum() == wanted:
            break
    return int(seen.sum())


def _weighted(positions: np.ndarray, weights: Sequence[float], seed: int) -> np.ndarray:
    """Return the class at each position, int64 [N]: a golden-ratio sequence over the classes' shares."""
    ends = np.cumsum(np.divide(weights, max(weights)))
    points = positions.astype(np.uint64) * GOLDEN + np.uint64(derive_seed(seed, "labels"))
    shares = (points >> np.uint64(11)).astype(np.float64) / 2**53  # in [0, 1), exact
    return np.searchsorted(ends, shares * ends[-1], side="right").clip(max=_last(weights))


def _last(weights: Sequence[float]) -> int:
    """Return the last class with a weight above 0, which rounding must not exceed."""
    return int(np.flatnonzero(weights)[-1])


def planned_coverage(recipe: Recipe, batches: int, more: str) -> str:
    """Return a line on how many classes the batches cover; it starts with `warning: ` if some are missing.

    `more` tells the user how to get more batches: MORE_SHARDS or MORE_BATCHES.
    """
    if recipe.synthesize.chosen.labels == "teacher":
        return "classes: those that the teacher sees, as synthesize.labels is teacher"
    size, weights, classes = recipe.synthesize.batch_size, recipe.class_weights, len(recipe.names)
    wanted = classes if weights is None else sum(weight > 0 for weight in weights)
    covered = classes_covered(
        batches, batch_size=size, num_classes=classes, seed=recipe.seed, weights=weights
    )
    if covered == wanted:
        each = batches * size / wanted
        left_out = f" ({classes - wanted:,} of weight 0 get none)" if wanted < classes else ""
        return f"classes: all {wanted:,} get images, {each:,.1f} synthesized each on average{left_out}"
    enough = counted(-(-wanted // size), "batch covers", "batches cover")
    images = counted(batches * size, "synthesized image covers", "synthesized images cover")
    return (
        f"warning: {images} {covered:,} of {wanted:,} classes, and the student learns nothing of the others;"
        f" {more}{f' ({enough} all)' if weights is None else ''}"
    )


def coverage_warning(recipe: Recipe, batches: int, more: str) -> str | None:
    """Return the warning of `planned_coverage` if classes are missing, else None."""
    line = planned_coverage(recipe, batches, more)
    text = line.removeprefix("warning: ")
    return text if text != line else None
