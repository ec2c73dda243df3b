"""Gives the shards of a bank to a crew and commits what it makes, whatever happens to its workers."""

import logging
from collections.abc import Sequence
from typing import Any

from engine.bank.manifest import shard_name
from engine.bank.writer import BankWriter
from engine.monitor.observer import Observer
from engine.workers.crew import Crew
from engine.workers.events import Done, Event, Failed, Logged, Lost, Ready, Unable
from engine.workers.queue import ShardQueue
from engine.workers.signals import Requests
from engine.workers.tally import Tally

logger = logging.getLogger(__name__)
TICK = 0.5
"""Seconds after which signals and observers are looked after where nothing happens."""


class Coordinator:
    """The only one who commits; a shard whose worker died, or that failed, is tried again."""

    def __init__(
        self,
        crew: Crew[Any],
        tally: Tally,
        requests: Requests,
        *,
        observers: Sequence[Observer],
    ) -> None:
        self.crew, self.tally, self.requests = crew, tally, requests
        self.observers = observers
        self._has_warned = False

    def await_worker(self) -> bool:
        """Returns once a worker has loaded its networks, or (False) the user asks for an end.

        Raises UserError where none can.
        """
        while not any(member.ready for member in self.crew.members):
            if self.requests.drain:
                return False
            self.crew.resize(min(self._wanted_workers(), self.tally.target))
            self._hear(TICK)
        return True

    def run(self, bank: BankWriter, queue: ShardQueue) -> None:
        """Until every shard of the queue is committed or given up, or the user asks for an end."""
        while True:
            self._show()
            outstanding = self._under_way() + (0 if self.requests.drain else len(queue))
            if self.requests.abandon or not outstanding:
                return
            self.crew.resize(min(self._wanted_workers(), outstanding))
            self._give(queue)
            events = self._hear(min(TICK, queue.pause or TICK))
            self._put_back(events, queue)
            self._give(queue)  # before the disk is waited for
            self._commit(bank, events)

    def _show(self) -> None:
        self.tally.draining = self.requests.drain
        for observer in self.observers:
            observer.update(self.tally)

    def _under_way(self) -> int:
        return sum(len(member.under_way) for member in self.crew.members)

    def _wanted_workers(self) -> int:
        return self.requests.workers(self.crew.capacity)

    def _give(self, queue: ShardQueue) -> None:
        """Workers get a shard beyond their first only while there is one for each of the others, too.

        A shard that has failed is made alone: what it does to its worker is done to no other.
        """
        while not self.requests.drain and queue.pause == 0:
            member, alone = self.crew.freest, queue.next_has_failed
            if member is None or (member.under_way and (alone or len(queue) < len(self.crew.members))):
                return
            self.crew.give(member, queue.take(), alone=alone)

    def _hear(self, seconds: float) -> list[Event]:
        """What happened, counted but for shards that are done: those count once they are committed."""
        events = self.crew.wait(seconds)
        for event in events:
            if not isinstance(event.what, Done):
                self.tally.take(event)
            match event.what:
                case Logged(logger=name, level=level, text=text):
                    logging.getLogger(name).log(level, "%s", text)
                case Ready(host=host, seconds=took):
                    logger.debug("%s: ready on %s after %.1f s", event.worker, host, took)
                case Lost(reason=reason) | Unable(reason=reason):
                    logger.error("%s: %s", event.worker, reason)
        return events

    def _commit(self, bank: BankWriter, events: Sequence[Event]) -> None:
        """By one manifest for all; a shard counts once it is in there."""
        bank.enter({event.what.number: event.what.entry for event in events if isinstance(event.what, Done)})
        for event in events:
            if isinstance(event.what, Done):
                self.tally.take(event)
        self._warn()

    def _warn(self) -> None:
        """As soon as there are enough images to know that they are none of their labels, and once."""
        if not self._has_warned and (warning := self.tally.agreements.warning):
            logger.warning(warning)
            self._has_warned = True

    def _put_back(self, events: Sequence[Event], queue: ShardQueue) -> None:
        for event in events:
            match event.what:
                case Failed(number=number, final=True, reason=reason):
                    self._give_up(number, reason)
                case Failed(number=number, reason=reason, trace=trace):
                    if trace:
                        logger.error("%s: shard %s:\n%s", event.worker, shard_name(number), trace)
                    self._again(number, reason, queue)
                case Lost(numbers=numbers, reason=reason):
                    for number in numbers:
                        self._again(number, reason, queue)

    def _again(self, number: int, reason: str, queue: ShardQueue) -> None:
        if queue.failed(number):
            self.tally.retries += 1
        else:
            self._give_up(number, reason)

    def _give_up(self, number: int, reason: str) -> None:
        self.tally.failed[number] = reason
        logger.error("shard %s is given up: %s", shard_name(number), reason)
