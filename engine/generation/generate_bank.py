"""Generate a bank shard by shard, by one worker or many."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from engine.bank.manifest import MANIFEST, shard_name
from engine.bank.storage import absolute, open_storage
from engine.bank.writer import BankWriter, require_new
from engine.config.recipe import Recipe
from engine.errors import FailedShardsError
from engine.generation.messages import Job
from engine.generation.monitor.console import View
from engine.generation.monitor.open import open_observers
from engine.generation.monitor.progress import GenerationStats
from engine.generation.provenance import bank_header
from engine.generation.workers.coordinator import Coordinator
from engine.generation.workers.pool import WorkerPool
from engine.generation.workers.ray import RayCluster
from engine.generation.workers.retry_queue import ShardQueue
from engine.generation.workers.signals import requests
from engine.stages.labels import MORE_SHARDS, coverage_warning

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Which workers make the shards, as the command line says."""

    workers: int | None
    """Number of workers; None, only with a cluster: as many as fit."""
    retries: int
    """Number of retries of a shard that failed or whose worker died."""
    cluster: RayCluster | None = None
    """The Ray cluster that runs them; None: this machine."""

    def open(self, job: Job) -> WorkerPool[Any]:
        """Return the pool, empty. A single worker of this machine runs in this process."""
        if self.cluster is not None:
            from engine.generation.workers.ray import RayPool

            return RayPool(job, self.cluster, self.workers)
        assert self.workers is not None
        if self.workers == 1:
            from engine.generation.workers.in_process import InProcessPool

            return InProcessPool(job)
        from engine.generation.workers.processes import ProcessPool

        return ProcessPool(job, self.workers)


def generate(
    recipe: Recipe,
    url: str,
    shards: int,
    *,
    resume: bool,
    worker_options: WorkerOptions,
    watched: Mapping[str, Any],
) -> str:
    """Make the shards 0 to `shards` - 1 that the bank at `url` does not have. Return a summary line.

    `watched`: the options of `open_observers`. For signals see `Requests`. Raises UserError for what the user
    can fix and FailedShardsError for shards that were given up, once all others are committed.
    """
    logger.info("%s: %s, %s", recipe.name, recipe.compute.device, recipe.compute.precision)
    if warning := coverage_warning(recipe, shards, MORE_SHARDS):
        logger.warning(warning)
    if not resume:
        require_new(url)
    job = Job(
        recipe=recipe, url=absolute(url), header=bank_header(recipe), log_level=logger.getEffectiveLevel()
    )
    stats = GenerationStats(target=shards, found=0)
    with ExitStack() as stack:
        observers = stack.enter_context(open_observers(stats, url, View(), **watched))
        asked = stack.enter_context(requests())
        pool = stack.enter_context(worker_options.open(job))
        coordinator = Coordinator(pool, stats, asked, observers=observers)
        is_new = open_storage(url).size(MANIFEST) is None
        if is_new and not coordinator.await_worker():  # what fails to load leaves no bank
            return f"{url}: ended before its first shard"
        with BankWriter.open(url, job.header, resume=resume) as bank:
            missing = [number for number in range(shards) if number not in bank.committed]
            stats.begin(found=shards - len(missing))
            coordinator.run(bank, ShardQueue(missing, worker_options.retries))
            images = sum(entry.images for entry in bank.committed.values())
    return _ending(url, stats, images)


def _ending(url: str, stats: GenerationStats, images: int) -> str:
    """Raises FailedShardsError."""
    line = f"{url}: {stats.made} shards made, {stats.found} found sound; {images} images"
    if stats.failed:
        named = [f"{shard_name(number)} ({reason})" for number, reason in sorted(stats.failed.items())]
        raise FailedShardsError(
            f"{line}; {len(named)} shards failed: {'; '.join(named)}; --resume tries them again"
        )
    if stats.left:
        line = f"{line}; {stats.left} are left, --resume makes them"
    if warning := stats.agreements.warning:
        logger.warning(warning)
    return line
