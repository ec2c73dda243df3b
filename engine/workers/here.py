"""A crew of one: the worker runs in this process, between the coordinator's calls."""

import socket
import time
from collections.abc import Iterable
from queue import SimpleQueue

from engine.workers.crew import Crew, Member
from engine.workers.events import Event, Left, Ready
from engine.workers.job import Job
from engine.workers.worker import Worker


class _Here(Member):
    def __init__(self, name: str, job: Job) -> None:
        super().__init__(name, job.depth)
        begun = time.perf_counter()
        worker = Worker(job)
        self.news: list[Event] = [Event(name, Ready(socket.gethostname(), time.perf_counter() - begun))]
        self._numbers: SimpleQueue[int | None] = SimpleQueue()
        self._reports = worker.run(iter(self._numbers.get, None))

    def send(self, number: int) -> None:
        self._numbers.put(number)

    def dismiss(self) -> None:
        self._numbers.put(None)

    def kill(self) -> None:
        self._reports.close()

    def next_report(self) -> Event:
        """Works until a shard is done; once dismissed, and all are, it has left."""
        return Event(self.name, next(self._reports, Left()))


class HereCrew(Crew[_Here]):
    """A crew of one worker, which runs in this process."""

    capacity = 1

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def resize(self, size: int) -> None:
        """One at most: a second would hold its own copy of the networks and not make anything sooner."""
        super().resize(min(size, 1))

    def start(self, name: str) -> _Here:
        return _Here(name, self._job)

    def collect(self, seconds: float) -> Iterable[tuple[_Here, Event]]:
        for member in list(self.members):
            if member.news:
                yield member, member.news.pop()
            elif member.under_way or member.leaving:
                yield member, member.next_report()
            else:
                time.sleep(seconds)
