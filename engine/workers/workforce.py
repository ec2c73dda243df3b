"""Who makes the shards of a generation."""

from dataclasses import dataclass
from typing import Any

from engine.workers.crew import Crew
from engine.workers.job import Job
from engine.workers.ray_cluster import RayCluster


@dataclass(frozen=True, kw_only=True)
class Workforce:
    """What the command line says of workers."""

    workers: int | None
    """None, on a cluster alone: as many as it has places for."""
    retries: int
    """Further tries of a shard that failed, or whose worker died."""
    cluster: RayCluster | None = None
    """Where they are, unless on this machine."""

    def open(self, job: Job) -> Crew[Any]:
        """The crew, without its members. One worker of this machine works in this process."""
        if self.cluster is not None:
            from engine.workers.ray_crew import RayCrew

            return RayCrew(job, self.cluster, self.workers)
        assert self.workers is not None
        if self.workers == 1:
            from engine.workers.here import HereCrew

            return HereCrew(job)
        from engine.workers.pool import PoolCrew

        return PoolCrew(job, self.workers)
