"""What an image costs, and what a worker's memory is, when a bank has many shards; and what was planned."""

import time
from collections.abc import Iterator
from functools import partial

from bench.rows import Row
from bench.scale.generation import Commits, embedded, generation, slope
from bench.scale.row import row
from engine.workers.plan import sample
from engine.workers.pool import PoolCrew

BATCH, FEW, MANY = 8, 20, 200


def rows() -> Iterator[Row]:
    """MANY small shards by one worker beside the first FEW of them; the plan of FEW beside their time."""
    recipe = embedded(BATCH)
    planned = sample(recipe).wall_seconds(FEW, 1)
    begun = time.perf_counter()
    generation(recipe, lambda job: PoolCrew(job, 1), FEW)
    taken = time.perf_counter() - begun
    made = generation(recipe, lambda job: PoolCrew(job, 1), MANY)
    shape = f"{BATCH} sources x {recipe.augment.variations} variations a shard, 1 worker of 1 thread"
    same = partial(row, dtype=recipe.compute.runtime_precision, shape=shape)
    few, many = (1000 * seconds_an_image(made, count) for count in (FEW, MANY))
    yield same(f"{MANY} shards", f"the first {FEW} of them", many, few, "ms an image")
    early, late = (made.rss["worker 1"][count - 1] / 2**20 for count in (FEW, MANY))
    yield same(f"memory after {MANY} shards", f"after {FEW}", late, early, "MiB of RSS")
    pixels = made.images_a_shard * 3 * recipe.teacher.image_size**2 / 1024
    yield same("memory, slope", "the pixels of a shard", slope(made, FEW) / 1024, pixels, "KiB a shard")
    yield same(f"plan of {FEW} shards", "as it was", planned, taken, "s", ratio=planned / taken)


def seconds_an_image(made: Commits, shards: int) -> float:
    """Of the one worker's shards up to number `shards`, the first left out."""
    (times,) = made.times.values()
    return (times[shards - 1] - times[0]) / (shards - 1) / made.images_a_shard
