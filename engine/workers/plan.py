"""What a generation will cost, from a short sample made on this device."""

import logging
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from engine.bank.agreement import Agreements
from engine.errors import FailedShardsError
from engine.provenance import bank_header
from engine.recipe import Recipe
from engine.workers.events import Done, Failed
from engine.workers.job import Job
from engine.workers.worker import Worker

logger = logging.getLogger(__name__)
LATER_SHARDS = 3
"""Measured after the first, which takes the generator's warm-up along; so many for each under way at once."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one worker did on this device."""

    load_seconds: float
    first_seconds: float
    """Of the first shard, warm-up included."""
    later_seconds: tuple[float, ...]
    """Of each further shard."""
    shard_bytes: float
    """Of the files of a shard, the mean."""
    images: float
    """Kept, a shard."""
    acceptance: float | None
    """Share of the variations that are kept."""
    rss: int
    """Bytes of the worker's process at the end."""
    agreements: Agreements = Agreements()
    """Of the teacher with the labels."""

    @property
    def shard_seconds(self) -> float:
        """Of a shard once a worker is warm."""
        return median(self.later_seconds)

    def wall_seconds(self, shards: int, workers: int) -> float:
        """Of so many shards by so many workers, each with a device like this one to itself."""
        rounds = math.ceil(shards / workers)
        return self.load_seconds + self.first_seconds + (rounds - 1) * self.shard_seconds


def sample(recipe: Recipe) -> Sample:
    """Makes some shards in a temporary folder. Raises what a generation raises."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        job = Job(recipe=recipe, url=folder, header=bank_header(recipe))
        count = 1 + LATER_SHARDS * job.depth
        worker = Worker(job)
        times = [begun, time.perf_counter()]
        made = []
        for report in worker.run(iter(range(count))):
            times.append(time.perf_counter())
            made.append(_require_done(report))
            logger.info("sample %d of %d: %.1f s", len(made), count, times[-1] - times[-2])
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    variations = sum(done.variations for done in made)
    load, first, *later = (after - before for before, after in zip(times, times[1:], strict=False))
    return Sample(
        load_seconds=load,
        first_seconds=first,
        later_seconds=tuple(later),
        shard_bytes=size / len(made),
        images=sum(done.entry.images for done in made) / len(made),
        acceptance=sum(done.accepted for done in made) / variations if variations else None,
        rss=made[-1].rss,
        agreements=sum((done.agreements for done in made), Agreements()),
    )


def _require_done(report: Done | Failed) -> Done:
    if isinstance(report, Failed):
        raise FailedShardsError(f"the sample failed: {report.reason}")
    return report
