"""The process of a worker of the pool, as its coordinator sees it."""

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Iterator
from multiprocessing.connection import Connection

from engine.workers.events import Report
from engine.workers.job import Job
from engine.workers.process import Place, work


class Launched(ABC):
    """A worker's process. Its pipe is ready to be read if the worker has reported something or has ended."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def reports(self) -> Iterator[Report]:
        """Yield the worker's reports so far. Raise EOFError or OSError after a dead worker's last one."""
        while self.pipe.poll():
            yield self.pipe.recv()

    @abstractmethod
    def kill(self) -> None:
        """End it at once, without waiting."""

    @abstractmethod
    def join(self) -> int | None:
        """Wait until it has ended. Return its exit code, or minus the signal; None if nobody knows."""


class Spawned(Launched):
    """A new interpreter, which imports everything: if it cannot be forked."""

    def __init__(self, name: str, job: Job, place: Place) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        super().__init__(ours)
        self._process = context.Process(target=work, args=(theirs, job, place), name=name, daemon=True)
        self._process.start()
        theirs.close()

    def kill(self) -> None:
        self._process.kill()

    def join(self) -> int | None:
        self._process.join()
        self.pipe.close()
        return self._process.exitcode
