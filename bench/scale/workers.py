"""Two workers beside one on a core of its own, and on Ray beside the pool."""

from collections.abc import Iterator
from statistics import median

from bench.rows import Row, commit
from bench.scale.generation import Opener, embedded, generation
from engine.workers.pool import PoolCrew
from engine.workers.ray_cluster import LOCAL, RayCluster
from engine.workers.ray_crew import RayCrew
from engine.workers.threads import available_cores

BATCH, SHARDS_A_WORKER, ROUNDS = 32, 8, 3


def rows() -> Iterator[Row]:
    """In turns, as the machine's speed drifts; every worker has one thread."""
    recipe, workers = embedded(BATCH), available_cores()
    ways: dict[str, tuple[Opener, int]] = {
        "one": (lambda job: PoolCrew(job, 1), 1),
        "pool": (lambda job: PoolCrew(job, workers), workers),
    }
    with RayCluster(LOCAL, cpus=workers) as cluster:
        ways["ray"] = (lambda job: RayCrew(job, cluster, workers, print), workers)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (open_crew, count) in ways.items():
                made = generation(recipe, open_crew, SHARDS_A_WORKER * count)
                found[name].append(made.images_a_second())
    pace = {name: median(values) for name, values in found.items()}
    yield _row(f"scale/{workers} workers", "one worker on one core", pace["pool"], pace["one"])
    yield _row(f"scale/{workers} workers, ray local", "the pool", pace["ray"], pace["pool"])


def _row(case: str, baseline: str, ours: float, theirs: float) -> Row:
    recipe = embedded(BATCH)
    return Row(
        case=case,
        baseline=baseline,
        ours=ours,
        theirs=theirs,
        unit="img/s",
        ratio=ours / theirs,
        floor=None,
        device=machine(),
        dtype=recipe.compute.runtime_precision,
        shape=f"{BATCH} sources x {recipe.augment.variations} variations a shard, 1 thread a worker",
        commit=commit(),
    )


def machine() -> str:
    """The processor, without the number of threads, of which each row says how many a worker has."""
    import torch

    from bench.machine import describe

    return describe(torch.device("cpu")).rpartition(",")[0]
