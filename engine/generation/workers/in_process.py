"""A pool of one worker that runs in the coordinator's process, between the coordinator's calls."""

import socket
import time
from collections.abc import Iterable
from queue import SimpleQueue

from engine.generation.messages import Event, Exited, Job, Ready
from engine.generation.workers.pool import WorkerHandle, WorkerPool
from engine.generation.workers.worker import Worker


class _InProcessWorker(WorkerHandle):
    def __init__(self, name: str, job: Job) -> None:
        super().__init__(name, job.depth)
        start = time.perf_counter()
        worker = Worker(job)
        self.events: list[Event] = [Event(name, Ready(socket.gethostname(), time.perf_counter() - start))]
        self._numbers: SimpleQueue[int | None] = SimpleQueue()
        self._reports = worker.run(iter(self._numbers.get, None))

    def send(self, number: int) -> None:
        self._numbers.put(number)

    def dismiss(self) -> None:
        self._numbers.put(None)

    def kill(self) -> None:
        self._reports.close()

    def next_report(self) -> Event:
        """Work until a shard is done; return Exited once dismissed and all shards are done."""
        return Event(self.name, next(self._reports, Exited()))


class InProcessPool(WorkerPool[_InProcessWorker]):
    """A pool of one worker, which runs in this process."""

    capacity = 1

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def resize(self, size: int) -> None:
        """Start at most one worker: a second would copy the networks without being faster."""
        super().resize(min(size, 1))

    def start(self, name: str) -> _InProcessWorker:
        return _InProcessWorker(name, self._job)

    def collect(self, seconds: float) -> Iterable[tuple[_InProcessWorker, Event]]:
        for worker in list(self.workers):
            if worker.events:
                yield worker, worker.events.pop()
            elif worker.under_way or worker.leaving:
                yield worker, worker.next_report()
            else:
                time.sleep(seconds)
