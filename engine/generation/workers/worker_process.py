"""A worker's process, and the coordinator's handle of it.

Shard numbers go in through a pipe, and reports come out. The process is bound to its GPU and its cores before
it initialises CUDA or starts threads.
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

from engine.generation.messages import Job, LoadFailed, Ready, Report, forward_log


@dataclass(frozen=True)
class WorkerPlacement:
    """The GPU and the cores that a worker uses; None means any."""

    gpu: str | None
    """Value of CUDA_VISIBLE_DEVICES."""
    cores: Collection[int] | None


class WorkerProcess(ABC):
    """A worker's process. Its pipe can be read once the worker has reported something or exited."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def reports(self) -> Iterator[Report]:
        """Yield the worker's reports so far. Raise EOFError or OSError after a dead worker's last one."""
        while self.pipe.poll():
            yield self.pipe.recv()

    @abstractmethod
    def kill(self) -> None:
        """Kill the process without waiting."""

    @abstractmethod
    def join(self) -> int | None:
        """Wait until the process has exited. Return its exit code or minus the signal; None if unknown."""


class SpawnedProcess(WorkerProcess):
    """A new interpreter that imports everything itself, for systems without a fork server."""

    def __init__(self, name: str, job: Job, placement: WorkerPlacement) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        super().__init__(ours)
        self._process = context.Process(target=work, args=(theirs, job, placement), name=name, daemon=True)
        self._process.start()
        theirs.close()

    def kill(self) -> None:
        self._process.kill()

    def join(self) -> int | None:
        self._process.join()
        self.pipe.close()
        return self._process.exitcode


def work(pipe: Connection, job: Job, placement: WorkerPlacement) -> None:
    """Make the shards whose numbers arrive, until None arrives; exit at once if the coordinator has gone.

    Ignores SIGINT and SIGTERM, which reach the whole process group and are handled by the coordinator.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if placement.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = placement.gpu
    if placement.cores is not None:
        os.sched_setaffinity(0, placement.cores)
    numbers: SimpleQueue[int | None] = SimpleQueue()
    Thread(target=_listen, args=(pipe, numbers), daemon=True).start()
    sending = Lock()

    def send(report: Report) -> None:
        with sending:
            pipe.send(report)

    forward_log(send, job.log_level)
    from engine.generation.workers.worker import ONE_LINE, Worker, one_line

    start = time.perf_counter()
    try:
        worker = Worker(job)
    except ONE_LINE as error:
        send(LoadFailed(one_line(error)))
        return
    send(Ready(socket.gethostname(), time.perf_counter() - start))
    for report in worker.run(iter(numbers.get, None)):
        send(report)


def _listen(pipe: Connection, numbers: "SimpleQueue[int | None]") -> None:
    try:
        while True:
            numbers.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(1)
