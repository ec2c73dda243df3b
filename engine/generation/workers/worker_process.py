"""A worker's process and its coordinator's handle: shard numbers go in by a pipe, reports come out by it.

The process is bound to its GPU and its cores before it initialises CUDA or computes on several threads.
"""

import multiprocessing
import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread

from engine.generation.messages import Job, Ready, Report, Unable
from engine.generation.workers.forwarding import forward_log


@dataclass(frozen=True)
class Place:
    """Where a worker runs; None where it may run anywhere."""

    gpu: str | None
    """Of CUDA_VISIBLE_DEVICES."""
    cores: Collection[int] | None


def work(pipe: Connection, job: Job, place: Place) -> None:
    """Makes the shards that it is sent until it is sent None; ends at once where the coordinator is gone.

    The signals that end a group of processes are the coordinator's to act upon.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if place.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu
    if place.cores is not None:
        os.sched_setaffinity(0, place.cores)
    numbers: SimpleQueue[int | None] = SimpleQueue()
    Thread(target=_listen, args=(pipe, numbers), daemon=True).start()
    sending = Lock()

    def report(what: Report) -> None:
        with sending:
            pipe.send(what)

    forward_log(report, job.log_level)
    from engine.generation.workers.worker import ONE_LINE, Worker, one_line

    begun = time.perf_counter()
    try:
        worker = Worker(job)
    except ONE_LINE as error:
        report(Unable(one_line(error)))
        return
    report(Ready(socket.gethostname(), time.perf_counter() - begun))
    for what in worker.run(iter(numbers.get, None)):
        report(what)


def _listen(pipe: Connection, numbers: "SimpleQueue[int | None]") -> None:
    try:
        while True:
            numbers.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(1)


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
