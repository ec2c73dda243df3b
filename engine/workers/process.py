"""A worker's process: shard numbers come in by a pipe, reports go out by it.

The process is bound to its GPU and its cores before it initialises CUDA or computes on several threads.
"""

import os
import signal
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread

from engine.workers.events import Ready, Report, Unable
from engine.workers.forwarding import forward_log
from engine.workers.job import Job


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
    from engine.workers.worker import ONE_LINE, Worker, one_line

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
