"""Gives the shards of a bank to a crew and commits what it makes, whatever happens to its workers."""

from collections.abc import Callable, Sequence
from typing import Any

from engine.bank.names import shard_name
from engine.bank.writer import BankWriter
from engine.monitor.observer import Observer
from engine.workers.crew import Crew
from engine.workers.events import Done, Event, Failed, Lost, Said
from engine.workers.queue import ShardQueue
from engine.workers.signals import Requests
from engine.workers.tally import Tally

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
        say: Callable[[str], None],
    ) -> None:
        self.crew, self.tally, self.requests = crew, tally, requests
        self.observers, self.say = observers, say

    def await_worker(self) -> None:
        """Returns once a worker has loaded its networks. Raises UserError where none can."""
        while not any(member.ready for member in self.crew.members) and not self.requests.drain:
            self.crew.resize(min(self._wanted_workers(), self.tally.target))
            self._hear(TICK)

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
            done = [event.what for event in events if isinstance(event.what, Done)]
            bank.enter({each.number: each.entry for each in done})

    def _show(self) -> None:
        self.tally.draining = self.requests.drain
        for observer in self.observers:
            observer.update(self.tally)

    def _under_way(self) -> int:
        return sum(len(member.under_way) for member in self.crew.members)

    def _wanted_workers(self) -> int:
        return max(1, self.crew.capacity + self.requests.more_workers)

    def _give(self, queue: ShardQueue) -> None:
        """Workers get a shard beyond their first only while there is one for each of the others, too."""
        while not self.requests.drain and queue.pause == 0:
            member = self.crew.freest
            if member is None or (member.under_way and len(queue) < len(self.crew.members)):
                return
            self.crew.give(member, queue.take())

    def _hear(self, seconds: float) -> list[Event]:
        events = self.crew.wait(seconds)
        for event in events:
            self.tally.take(event)
            if isinstance(event.what, Said):
                self.say(event.what.text)
        return events

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
                    self.say(f"{event.worker}: {reason}")
                    for number in numbers:
                        self._again(number, reason, queue)

    def _again(self, number: int, reason: str, queue: ShardQueue) -> None:
        if queue.failed(number):
            self.tally.retries += 1
        else:
            self._give_up(number, reason)

    def _give_up(self, number: int, reason: str) -> None:
        self.tally.failed[number] = reason
        self.say(f"shard {shard_name(number)} is given up: {reason}")
