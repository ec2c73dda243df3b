"""Generations by a crew, and when each of their shards was committed."""

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
from engine.preparing import settled_here
from engine.provenance import bank_header
from engine.recipe import Recipe, load_recipe
from engine.workers.coordinator import Coordinator
from engine.workers.crew import Crew
from engine.workers.job import Job
from engine.workers.queue import ShardQueue
from engine.workers.signals import Requests
from engine.workers.tally import Tally

Opener = Callable[[Job], AbstractContextManager[Crew[Any]]]


@dataclass
class Commits:
    """An observer: the clock at each shard, and what its worker held then; by worker, in order."""

    times: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rss: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    images_a_shard: float = 0.0

    def update(self, tally: Tally) -> None:
        for name, worker in tally.workers.items():
            if worker.shards > len(self.times[name]):
                self.times[name].append(time.perf_counter())
                self.rss[name].append(worker.rss)
        if tally.made:
            self.images_a_shard = tally.rows / tally.made

    def close(self, tally: Tally) -> None:
        """Nothing to end."""

    def images_a_second(self) -> float:
        """Once every worker is warm: from its first shard on, summed over the workers."""
        paces = [(len(times) - 1) / (times[-1] - times[0]) for times in self.times.values() if len(times) > 1]
        return self.images_a_shard * sum(paces)


def embedded(batch_size: int) -> Recipe:
    """The embedded default with smaller shards and a thread a worker, settled."""
    settings = {"synthesize.batch_size": batch_size, "compute.threads": 1, "compute.device": "cpu"}
    return settled_here(load_recipe("fashion-mnist", settings))


def generation(recipe: Recipe, open_crew: Opener, shards: int) -> Commits:
    """Makes so many shards into a temporary folder."""
    commits = Commits()
    with TemporaryDirectory() as folder:
        url = str(Path(folder) / "bank")
        job = Job(recipe=recipe, url=url, header=bank_header(recipe))
        tally = Tally(target=shards, found=0)
        with open_crew(job) as crew:
            coordinator = Coordinator(crew, tally, Requests(), observers=[commits])
            coordinator.await_worker()
            with BankWriter.open(url, job.header, resume=False) as bank:
                coordinator.run(bank, ShardQueue(range(shards), retries=0))
        assert not tally.failed, tally.failed
    return commits


def slope(commits: Commits, skipped: int) -> float:
    """Bytes a shard by which a worker's memory grows, after so many shards; least squares, over workers."""
    return mean(_slope(values[skipped:]) for values in commits.rss.values() if len(values) > skipped + 1)


def _slope(values: list[int]) -> float:
    middle, level = (len(values) - 1) / 2, mean(values)
    covariance = sum((x - middle) * (y - level) for x, y in enumerate(values))
    return covariance / sum((x - middle) ** 2 for x in range(len(values)))
