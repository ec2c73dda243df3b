"""Two workers beside one on a core of its own, and on Ray beside the pool."""

from collections.abc import Iterator
from statistics import median

from bench.rows import Row
from bench.scale.generation import Opener, embedded, generation
from bench.scale.row import row
from engine.compute import available_cores
from engine.workers.pool import PoolCrew
from engine.workers.ray_cluster import LOCAL, RayCluster
from engine.workers.ray_crew import RayCrew

BATCH, SHARDS_A_WORKER, ROUNDS = 32, 8, 3


def rows() -> Iterator[Row]:
    """In turns, as the machine's speed drifts; every worker has one thread."""
    recipe, workers = embedded(BATCH), available_cores()
    ways: dict[str, tuple[Opener, int]] = {
        "one": (lambda job: PoolCrew(job, 1), 1),
        "pool": (lambda job: PoolCrew(job, workers), workers),
    }
    with RayCluster(LOCAL, cpus=workers) as cluster:
        ways["ray"] = (lambda job: RayCrew(job, cluster, workers), workers)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (open_crew, count) in ways.items():
                made = generation(recipe, open_crew, SHARDS_A_WORKER * count)
                found[name].append(made.images_a_second())
    pace = {name: median(values) for name, values in found.items()}
    shape = f"{BATCH} sources x {recipe.augment.variations} variations a shard, 1 thread a worker"
    dtype = recipe.compute.runtime_precision
    for case, baseline, ours, theirs in (
        (f"{workers} workers", "one worker on one core", pace["pool"], pace["one"]),
        (f"{workers} workers, ray local", "the pool", pace["ray"], pace["pool"]),
    ):
        yield row(case, baseline, ours, theirs, "img/s", ratio=ours / theirs, dtype=dtype, shape=shape)
