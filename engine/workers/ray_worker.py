"""A worker as a Ray actor: its methods run side by side, its shards one after the other."""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue

from engine.workers.events import Done, Failed, Logged, Ready, Report, Unable
from engine.workers.forwarding import forward_log
from engine.workers.job import Job


class RayWorker:
    """`load` once, then `make` for each shard, of which several may be under way."""

    def __init__(self) -> None:
        self._logged: deque[Logged] = deque()
        self._numbers: SimpleQueue[int | None] = SimpleQueue()
        self._waiting: deque[Future[Done | Failed]] = deque()
        self._order = threading.Lock()

    def load(self, job: Job) -> Sequence[Report]:
        """Ready, or why it cannot be; after its log records."""
        from engine.workers.worker import ONE_LINE, Worker, one_line, require_weights

        forward_log(self._log, job.log_level)
        begun = time.perf_counter()
        try:
            require_weights(job)
            worker = Worker(job)
        except ONE_LINE as error:
            return [*self._records(), Unable(f"{_address()}: {one_line(error)}")]
        reports = worker.run(iter(self._numbers.get, None))
        threading.Thread(target=self._hand_out, args=(reports,), daemon=True).start()
        return [*self._records(), Ready(_address(), time.perf_counter() - begun)]

    def make(self, number: int) -> Sequence[Report]:
        """Of one shard that it is Done or Failed; after the log records since the last report."""
        mine: Future[Done | Failed] = Future()
        with self._order:
            self._waiting.append(mine)
            self._numbers.put(number)
        done = mine.result()
        return [*self._records(), done]

    def _hand_out(self, reports: Iterator[Done | Failed]) -> None:
        """Ends the actor when there are no more: whoever waits then learns that it is dead."""
        try:
            for report in reports:
                self._waiting.popleft().set_result(report)
        finally:
            os._exit(1)

    def _log(self, record: Logged) -> None:
        self._logged.append(replace(record, text=f"{_address()}: {record.text}"))

    def _records(self) -> list[Logged]:
        return [self._logged.popleft() for _ in range(len(self._logged))]


def _address() -> str:
    import ray

    address: str = ray.util.get_node_ip_address()
    return address
