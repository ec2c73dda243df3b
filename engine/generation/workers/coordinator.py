"""Gives the shards of a bank to a pool and commits what it makes, whatever happens to its workers."""

from collections.abc import Callable, Sequence
from typing import Any

from engine.bank.names import shard_name
from engine.bank.writer import BankWriter
from engine.generation.messages import Done, Event, Failed, Lost, Said, Unable
from engine.generation.monitor.observer import Observer
from engine.generation.monitor.progress import GenerationStats
from engine.generation.workers.pool import WorkerPool
from engine.generation.workers.retry_queue import ShardQueue
from engine.generation.workers.signals import Requests

TICK = 0.5
"""Seconds after which signals and observers are looked after where nothing happens."""


class Coordinator:
    """The only one who commits; a shard whose worker died, or that failed, is tried again."""

    def __init__(
        self,
        pool: WorkerPool[Any],
        stats: GenerationStats,
        requests: Requests,
        *,
        observers: Sequence[Observer],
        say: Callable[[str], None],
    ) -> None:
        self.pool, self.stats, self.requests = pool, stats, requests
        self.observers, self.say = observers, say
        self._has_warned = False

    def await_worker(self) -> bool:
        """Returns once a worker has loaded its networks, or (False) the user asks for an end.

        Raises UserError where none can.
        """
        while not any(worker.ready for worker in self.pool.workers):
            if self.requests.drain:
                return False
            self.pool.resize(min(self._wanted_workers(), self.stats.target))
            self._receive(TICK)
        return True

    def run(self, bank: BankWriter, queue: ShardQueue) -> None:
        """Until every shard of the queue is committed or given up, or the user asks for an end."""
        while True:
            self._show()
            outstanding = self._under_way() + (0 if self.requests.drain else len(queue))
            if self.requests.abandon or not outstanding:
                return
            self.pool.resize(min(self._wanted_workers(), outstanding))
            self._give(queue)
            events = self._receive(min(TICK, queue.pause or TICK))
            self._put_back(events, queue)
            self._give(queue)  # before the disk is waited for
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
        """Workers get a shard beyond their first only while there is one for each of the others, too.

        A shard that has failed is made alone: what it does to its worker is done to no other.
        """
        while not self.requests.drain and queue.pause == 0:
            worker, alone = self.pool.freest, queue.next_has_failed
            if worker is None or (worker.under_way and (alone or len(queue) < len(self.pool.workers))):
                return
            self.pool.give(worker, queue.take(), alone=alone)

    def _receive(self, seconds: float) -> list[Event]:
        """What happened, counted but for shards that are done: those count once they are committed."""
        events = self.pool.wait(seconds)
        for event in events:
            if not isinstance(event.what, Done):
                self.stats.take(event)
            match event.what:
                case Said(text=text):
                    self.say(text)
                case Lost(reason=reason) | Unable(reason=reason):
                    self.say(f"{event.worker}: {reason}")
        return events

    def _commit(self, bank: BankWriter, events: Sequence[Event]) -> None:
        """By one manifest for all; a shard counts once it is in there."""
        bank.enter({event.what.number: event.what.entry for event in events if isinstance(event.what, Done)})
        for event in events:
            if isinstance(event.what, Done):
                self.stats.take(event)
        self._warn()

    def _warn(self) -> None:
        """As soon as there are enough images to know that they are none of their labels, and once."""
        if not self._has_warned and (warning := self.stats.agreements.warning):
            self.say(f"warning: {warning}")
            self._has_warned = True

    def _put_back(self, events: Sequence[Event], queue: ShardQueue) -> None:
        for event in events:
            match event.what:
                case Failed(number=number, final=True, reason=reason):
                    self._give_up(number, reason)
                case Failed(number=number, reason=reason, trace=trace):
                    if trace:
                        self.say(f"{event.worker}: shard {shard_name(number)}:\n{trace}")
                    self._again(number, reason, queue)
                case Lost(numbers=numbers, reason=reason):
                    for number in numbers:
                        self._again(number, reason, queue)

    def _again(self, number: int, reason: str, queue: ShardQueue) -> None:
        if queue.failed(number):
            self.stats.retries += 1
        else:
            self._give_up(number, reason)

    def _give_up(self, number: int, reason: str) -> None:
        self.stats.failed[number] = reason
        self.say(f"shard {shard_name(number)} is given up: {reason}")
