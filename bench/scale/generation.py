"""Run generations and record when each shard was committed."""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from engine.bank.writer import BankWriter
from engine.cli.resolve import resolve
from engine.config.recipe import Recipe
from engine.generation.messages import Job
from engine.generation.monitor.progress import GenerationStats
from engine.generation.provenance import bank_header
from engine.generation.workers.coordinator import Coordinator
from engine.generation.workers.pool import WorkerPool
from engine.generation.workers.retry_queue import ShardQueue
from engine.generation.workers.signals import Requests
from engine.recipes.load import load_recipe

Opener = Callable[[Job], AbstractContextManager[WorkerPool[Any]]]


@dataclass
class Commits:
    """An observer that records, by worker, the time of each shard and the worker's memory at that time."""

    times: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rss: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    images_per_shard: float = 0.0

    def update(self, stats: GenerationStats) -> None:
        for name, worker in stats.workers.items():
            if worker.shards > len(self.times[name]):
                self.times[name].append(time.perf_counter())
                self.rss[name].append(worker.rss)
        if stats.made:
            self.images_per_shard = stats.rows / stats.made

    def close(self, stats: GenerationStats) -> None:
        """Do nothing: there is nothing to close."""

    def images_per_second(self) -> float:
        """Return the rate of warm workers: measured after each one's first shard, summed over workers."""
        rates = [(len(times) - 1) / (times[-1] - times[0]) for times in self.times.values() if len(times) > 1]
        return self.images_per_shard * sum(rates)


def embedded(batch_size: int) -> Recipe:
    """Return the default recipe with smaller shards and one thread per worker, resolved."""
    settings = {"synthesize.batch_size": batch_size, "compute.threads": 1, "compute.device": "cpu"}
    return resolve(load_recipe("fashion-mnist", settings))


def generation(recipe: Recipe, open_pool: Opener, shards: int) -> Commits:
    """Generate `shards` shards into a temporary folder."""
    commits = Commits()
    with TemporaryDirectory() as folder:
        url = str(Path(folder) / "bank")
        job = Job(recipe=recipe, url=url, header=bank_header(recipe))
        stats = GenerationStats(target=shards, found=0)
        with open_pool(job) as pool:
            coordinator = Coordinator(pool, stats, Requests(), observers=[commits])
            coordinator.await_worker()
            with BankWriter.open(url, job.header, resume=False) as bank:
                coordinator.run(bank, ShardQueue(range(shards), retries=0))
        assert not stats.failed, stats.failed
    return commits


def slope(commits: Commits, skipped: int) -> float:
    """Return the growth of a worker's memory after the first `skipped` shards, in bytes per shard.

    A least-squares fit for each worker, averaged.
    """
    return mean(_slope(values[skipped:]) for values in commits.rss.values() if len(values) > skipped + 1)


def _slope(values: list[int]) -> float:
    middle, level = (len(values) - 1) / 2, mean(values)
    covariance = sum((x - middle) * (y - level) for x, y in enumerate(values))
    return covariance / sum((x - middle) ** 2 for x in range(len(values)))
