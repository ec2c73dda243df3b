"""What an image costs, and what a worker's memory is, when a bank has many shards; and what was planned."""

import time
from collections.abc import Iterator

from bench.rows import Row, commit
from bench.scale.generation import Commits, embedded, generation, slope
from bench.scale.workers import machine
from engine.workers.plan import sample
from engine.workers.pool import PoolCrew

BATCH, FEW, MANY = 8, 20, 200


def rows() -> Iterator[Row]:
    """MANY small shards by one worker beside the first FEW of them; the plan of FEW beside their time."""
    recipe = embedded(BATCH)
    planned = sample(recipe, print).wall_seconds(FEW, 1)
    begun = time.perf_counter()
    generation(recipe, lambda job: PoolCrew(job, 1), FEW)
    taken = time.perf_counter() - begun
    made = generation(recipe, lambda job: PoolCrew(job, 1), MANY)
    few, many = (1000 * seconds_an_image(made, count) for count in (FEW, MANY))
    yield _row(f"scale/{MANY} shards", f"the first {FEW} of them", many, few, "ms an image", few / many)
    early, late = (made.rss["worker 1"][count - 1] / 2**20 for count in (FEW, MANY))
    yield _row(f"scale/memory after {MANY} shards", f"after {FEW}", late, early, "MiB of RSS", early / late)
    growth = slope(made, FEW) / 1024
    pixels = made.images_a_shard * 3 * recipe.teacher.image_size**2 / 1024
    yield _row(
        "scale/memory, slope",
        "the pixels of a shard",
        growth,
        pixels,
        "KiB a shard",
        pixels / max(abs(growth), 1e-3),
    )
    yield _row(f"scale/plan of {FEW} shards", "as it was", planned, taken, "s", planned / taken)


def seconds_an_image(made: Commits, shards: int) -> float:
    """Of the one worker's shards up to number `shards`, the first left out."""
    (times,) = made.times.values()
    return (times[shards - 1] - times[0]) / (shards - 1) / made.images_a_shard


def _row(case: str, baseline: str, ours: float, theirs: float, unit: str, ratio: float) -> Row:
    recipe = embedded(BATCH)
    return Row(
        case=case,
        baseline=baseline,
        ours=ours,
        theirs=theirs,
        unit=unit,
        ratio=ratio,
        floor=None,
        device=machine(),
        dtype=recipe.compute.runtime_precision,
        shape=f"{BATCH} sources x {recipe.augment.variations} variations a shard, 1 worker of 1 thread",
        commit=commit(),
    )
