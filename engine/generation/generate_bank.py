"""Generate the missing shards of a bank with one worker or many."""

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
from engine.generation.workers.signals import handle_signals
from engine.progress import counted
from engine.stages.labels import MORE_SHARDS, coverage_warning

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The workers that generate the shards, as set on the command line."""

    workers: int | None
    """Number of workers. None, which needs a cluster: as many as fit."""
    retries: int
    """Maximum number of retries of a shard that fails or whose worker dies."""
    cluster: RayCluster | None = None
    """Ray cluster that runs the workers. None: this machine."""

    def open(self, job: Job) -> WorkerPool[Any]:
        """Return an empty pool. A single worker on this machine runs in this process."""
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
    monitor_options: Mapping[str, Any],
) -> tuple[str, bool]:
    """Make those of shards 0 to `shards` - 1 that the bank at `url` lacks.

    Signals drain or resize the generation, see `Requests`.

    Args:
        recipe: a resolved recipe.
        monitor_options: keyword arguments of `open_observers`.

    Returns:
        A summary line, and whether SIGTERM ended the generation before the last shard.

    Raises:
        UserError: for mistakes of the user.
        Terminated: for SIGTERM before the first shard, and for the second SIGTERM.
        FailedShardsError: if shards failed for good; all others are committed.
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
        observers = stack.enter_context(open_observers(stats, url, View(), **monitor_options))
        requests = stack.enter_context(handle_signals())
        pool = stack.enter_context(worker_options.open(job))
        coordinator = Coordinator(pool, stats, requests, observers=observers)
        is_new = open_storage(url).size(MANIFEST) is None
        if is_new:
            coordinator.await_worker()  # create no bank if loading fails
        with BankWriter.open(url, job.header, resume=resume) as bank:
            missing = [number for number in range(shards) if number not in bank.committed]
            stats.begin(found=shards - len(missing))
            coordinator.run(bank, ShardQueue(missing, worker_options.retries))
            images = sum(entry.images for entry in bank.committed.values())
    return _summary(url, stats, images), stats.left > 0


def _summary(url: str, stats: GenerationStats, images: int) -> str:
    """Return the last line of the command. Raises FailedShardsError if shards failed for good."""
    made, kept = counted(stats.made, "shard", "shards"), counted(images, "image", "images")
    line = f"{url}: {made} made, {stats.found:,} already there; {kept}"
    if stats.failed:
        failed = [f"{shard_name(number)} ({reason})" for number, reason in sorted(stats.failed.items())]
        raise FailedShardsError(
            f"{line}; {counted(len(failed), 'shard', 'shards')} failed: {'; '.join(failed)};"
            " retry them with --resume"
        )
    if stats.left:
        line = f"{line}; {stats.left} left, continue with --resume"
    if warning := stats.agreements.warning:
        logger.warning(warning)
    return line
