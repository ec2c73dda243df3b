"""Hand shards to a worker pool and commit the results; retry shards that fail or whose worker dies."""

import logging
from collections.abc import Sequence
from typing import Any

from engine.bank.manifest import shard_name
from engine.bank.writer import BankWriter
from engine.generation.messages import Done, Event, Failed, LoadFailed, Logged, Lost, Ready
from engine.generation.monitor.progress import GenerationStats, Observer
from engine.generation.workers.pool import WorkerPool
from engine.generation.workers.retry_queue import ShardQueue
from engine.generation.workers.signals import Requests

logger = logging.getLogger(__name__)
TICK = 0.5
"""Seconds between two checks of signals and observers if there are no events."""


class Coordinator:
    """Runs a generation. It is the only process that commits shards."""

    def __init__(
        self,
        pool: WorkerPool[Any],
        stats: GenerationStats,
        requests: Requests,
        *,
        observers: Sequence[Observer],
    ) -> None:
        self.pool, self.stats, self.requests = pool, stats, requests
        self.observers = observers
        self._has_warned = False
        self._news: set[Logged] = set()

    def await_worker(self) -> None:
        """Wait until a worker has loaded its networks. Raises UserError if no worker can load."""
        while not any(worker.ready for worker in self.pool.workers):
            self.pool.resize(min(self._wanted_workers(), self.stats.target))
            self._receive(TICK)

    def run(self, bank: BankWriter, queue: ShardQueue) -> None:
        """Run until every shard of the queue is committed or has failed, or the user ends the generation."""
        self.requests.can_drain = True
        while True:
            self._show()
            outstanding = self._under_way() + (0 if self.requests.drain else len(queue))
            if not outstanding:
                return
            self.pool.resize(min(self._wanted_workers(), outstanding))
            self._give(queue)
            events = self._receive(min(TICK, queue.pause or TICK))
            self._put_back(events, queue)
            self._give(queue)  # before waiting for the disk
            self._commit(bank, events)

    def _show(self) -> None:
        self.stats.draining = self.requests.drain
        for observer in self.observers:
            observer.update(self.stats)

    def _under_way(self) -> int:
        return sum(len(worker.under_way) for worker in self.pool.workers)

    def _wanted_workers(self) -> int:
        return self.requests.workers(self.pool.capacity)

    def _give(self, queue: ShardQueue) -> None:
        """Give shards to workers with room, a second one only while every other worker can have one too.

        A shard that has failed before gets a worker to itself, so that it cannot take other shards down.
        """
        while not self.requests.drain and queue.pause == 0:
            worker, alone = self.pool.freest, queue.next_has_failed
            if worker is None or (worker.under_way and (alone or len(queue) < len(self.pool.workers))):
                return
            self.pool.give(worker, queue.take(), alone=alone)

    def _receive(self, seconds: float) -> list[Event]:
        """Return the new events; count and log all but finished shards, which count once committed."""
        events = self.pool.wait(seconds)
        for event in events:
            if not isinstance(event.what, Done):
                self.stats.take(event)
            match event.what:
                case Logged() as logged:
                    self._log(logged)
                case Ready(host=host, seconds=took):
                    logger.debug("%s: ready on %s after %.1f s", event.worker, host, took)
                case Lost(reason=reason) | LoadFailed(reason=reason):
                    logger.error("%s: %s", event.worker, reason)
        return events

    def _log(self, logged: Logged) -> None:
        """Log a worker's record; news once, although each worker that loads its networks has them."""
        if logged.level == logging.INFO:
            if logged in self._news:
                return
            self._news.add(logged)
        logging.getLogger(logged.logger).log(logged.level, "%s", logged.text)

    def _commit(self, bank: BankWriter, events: Sequence[Event]) -> None:
        """Commit all finished shards with one write of the manifest."""
        bank.commit_entries(
            {event.what.number: event.what.entry for event in events if isinstance(event.what, Done)}
        )
        for event in events:
            if isinstance(event.what, Done):
                self.stats.take(event)
        self._warn()

    def _warn(self) -> None:
        """Warn once, as soon as enough images show that the teacher disagrees with their labels."""
        if not self._has_warned and (warning := self.stats.agreements.warning):
            logger.warning(warning)
            self._has_warned = True

    def _put_back(self, events: Sequence[Event], queue: ShardQueue) -> None:
        for event in events:
            match event.what:
                case Failed(number=number, final=True, reason=reason):
                    self._give_up(number, reason)
                case Failed(number=number, reason=reason, trace=trace):
                    if trace:
                        logger.error("shard %s failed on %s:\n%s", shard_name(number), event.worker, trace)
                    self._retry(number, reason, queue)
                case Lost(numbers=numbers, reason=reason):
                    for number in numbers:
                        self._retry(number, reason, queue)

    def _retry(self, number: int, reason: str, queue: ShardQueue) -> None:
        if queue.failed(number):
            self.stats.retries += 1
        else:
            self._give_up(number, reason)

    def _give_up(self, number: int, reason: str) -> None:
        self.stats.failed[number] = reason
        logger.error("shard %s failed (%s), giving up", shard_name(number), reason)
