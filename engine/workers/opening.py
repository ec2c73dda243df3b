"""Opens the crew that a command line asks for."""

from collections.abc import Callable
from typing import Any

from engine.workers.crew import Crew
from engine.workers.job import Job
from engine.workers.ray_cluster import RayCluster


def open_crew(
    job: Job, workers: int | None, cluster: RayCluster | None, say: Callable[[str], None]
) -> Crew[Any]:
    """On a cluster, in `workers` processes of this machine, or (1) in this one.

    `workers` None: as many as a cluster has places for, and on this machine one for each GPU.
    """
    if cluster is not None:
        from engine.workers.ray_crew import RayCrew

        return RayCrew(job, cluster, workers)
    count = workers or _devices(job)
    if count == 1:
        from engine.workers.here import HereCrew

        return HereCrew(job, say)
    from engine.workers.pool import PoolCrew

    return PoolCrew(job, count)


def _devices(job: Job) -> int:
    if job.recipe.compute.device != "cuda":
        return 1
    import torch

    return torch.cuda.device_count()
