"""Throughput and memory of generation: over workers, on Ray, and over many shards."""

import math
import time
from collections.abc import Iterator
from functools import partial
from statistics import median

from bench.rows import Row
from bench.scale.generation import Commits, Opener, embedded, generation, slope
from bench.scale.row import row
from engine.generation.cost_plan import take_sample
from engine.generation.workers.processes import ProcessPool
from engine.generation.workers.ray import LOCAL, RayCluster, RayPool
from engine.hardware import available_cores

BATCH, SHARDS_PER_WORKER, ROUNDS = 32, 8, 3
SMALL_BATCH, FEW, MANY = 8, 20, 200


def over_workers() -> Iterator[Row]:
    """Yield one worker per core against one worker, and Ray against the pool.

    Candidates alternate, because the machine's speed drifts; every worker has one thread.
    """
    recipe, workers = embedded(BATCH), available_cores()
    ways: dict[str, tuple[Opener, int]] = {
        "one": (lambda job: ProcessPool(job, 1), 1),
        "pool": (lambda job: ProcessPool(job, workers), workers),
    }
    with RayCluster(LOCAL, cpus=workers) as cluster:
        ways["ray"] = (lambda job: RayPool(job, cluster, workers), workers)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (open_pool, count) in ways.items():
                commits = generation(recipe, open_pool, SHARDS_PER_WORKER * count)
                found[name].append(commits.images_per_second())
    rate = {name: median(values) for name, values in found.items()}
    shape = f"{BATCH} sources x {recipe.augment.variations} variations per shard, 1 thread per worker"
    dtype = recipe.compute.runtime_precision
    for case, baseline, ours, theirs in (
        (f"{workers} workers", "one worker on one core", rate["pool"], rate["one"]),
        (f"{workers} workers, ray local", "the pool", rate["ray"], rate["pool"]),
    ):
        yield row(case, baseline, ours, theirs, "img/s", ratio=ours / theirs, dtype=dtype, shape=shape)


def over_shards() -> Iterator[Row]:
    """Yield MANY small shards of one worker against the first FEW, and the plan for FEW against its run."""
    recipe = embedded(SMALL_BATCH)
    planned = take_sample(recipe).wall_seconds(FEW, 1)
    start = time.perf_counter()
    generation(recipe, lambda job: ProcessPool(job, 1), FEW)
    taken = time.perf_counter() - start
    commits = generation(recipe, lambda job: ProcessPool(job, 1), MANY)
    shape = (
        f"{SMALL_BATCH} sources x {recipe.augment.variations} variations per shard, 1 worker with 1 thread"
    )
    same = partial(row, dtype=recipe.compute.runtime_precision, shape=shape)
    few, many = (1000 * seconds_per_image(commits, count) for count in (FEW, MANY))
    yield same(f"{MANY} shards", f"the first {FEW} of them", many, few, "ms per image")
    early, late = (commits.rss["worker 1"][count - 1] / 2**20 for count in (FEW, MANY))
    yield same(f"memory after {MANY} shards", f"after {FEW}", late, early, "MiB of RSS")
    pixels = commits.images_per_shard * 3 * math.prod(recipe.teacher.size) / 1024
    yield same("memory, slope", "the pixels of a shard", slope(commits, FEW) / 1024, pixels, "KiB per shard")
    yield same(f"plan of {FEW} shards", "measured", planned, taken, "s", ratio=planned / taken)


def seconds_per_image(commits: Commits, shards: int) -> float:
    """Return the time per image of the only worker up to shard number `shards`, without the first shard."""
    (times,) = commits.times.values()
    return (times[shards - 1] - times[0]) / (shards - 1) / commits.images_per_shard
