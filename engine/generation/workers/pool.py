"""The base of all worker pools: track workers and their shards, and replace workers that died."""

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, Self, TypeVar

from engine.errors import UserError
from engine.generation.messages import Done, Event, Exited, Failed, LoadFailed, Lost, Ready

FIRST_DEATHS, LATER_DEATHS = 3, 20
"""Maximum number of workers in a row that die while loading, with no other worker running: before any worker
has loaded, and afterwards."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
"""Seconds before replacing a worker that died while loading, doubled each time up to the maximum."""
FAILURES = 2
"""Number of failed shards in a row after which a worker is replaced: its device or disk may be broken."""


class WorkerHandle(ABC):
    """The coordinator's handle of one worker."""

    def __init__(self, name: str, depth: int) -> None:
        self.name, self.depth = name, depth
        self.ready = False
        self.leaving = False
        """Whether it gets no more shards and exits after those that it has."""
        self.under_way: list[int] = []
        self.alone = False
        """Whether it may have no second shard, because its shard may have killed the last worker."""
        self.failures = 0
        """Number of shards that it failed since its last success."""

    @property
    def room(self) -> int:
        """Number of further shards that it can take."""
        if not self.ready or self.leaving or self.alone:
            return 0
        return self.depth - len(self.under_way)

    @abstractmethod
    def send(self, number: int) -> None:
        """Send it one more shard to make."""

    @abstractmethod
    def dismiss(self) -> None:
        """Let it exit after the shards that it has."""

    @abstractmethod
    def kill(self) -> None:
        """Kill it without waiting; its shards under way are lost."""

    def join(self) -> None:  # noqa: B027
        """Wait until it has exited, after `kill`."""


Handle = TypeVar("Handle", bound=WorkerHandle)


class WorkerPool(ABC, Generic[Handle]):
    """A pool of workers of the size that `resize` sets; the next `resize` replaces workers that died.

    Leaving the context kills all workers, including busy ones.
    """

    def __init__(self) -> None:
        self.workers: list[Handle] = []
        self._has_loaded = False
        self._failed_starts = 0
        self._next_start = 0.0
        self._started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with _uninterrupted():
            for worker in self.workers:
                worker.kill()
            for worker in self.workers:
                worker.join()
            self.close()
        self.workers = []

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Number of workers to run; it may change."""

    @abstractmethod
    def start(self, name: str) -> Handle:
        """Start a worker, which reports `Ready` once it has loaded its networks."""

    def close(self) -> None:  # noqa: B027
        """Release what starts workers, once all of them have exited."""

    @abstractmethod
    def collect(self, seconds: float) -> Iterable[tuple[Handle, Event]]:
        """Return the next events as soon as there are any, or nothing after `seconds`."""

    def resize(self, size: int) -> None:
        """Start or dismiss workers until there are `size`."""
        staying = [worker for worker in self.workers if not worker.leaving]
        if time.monotonic() >= self._next_start:
            for _ in range(size - len(staying)):
                self._started += 1
                self.workers.append(self.start(f"worker {self._started}"))
        idle_first = sorted(staying, key=lambda worker: (len(worker.under_way), worker.ready))
        for worker in idle_first[: max(0, len(staying) - size)]:
            self._dismiss(worker)

    @property
    def freest(self) -> Handle | None:
        """The worker with the fewest shards among those with room for another; None if no worker has room."""
        free = [worker for worker in self.workers if worker.room > 0]
        return min(free, key=lambda worker: len(worker.under_way), default=None)

    def give(self, worker: Handle, number: int, *, alone: bool = False) -> None:
        """Give the worker one more shard; with `alone`, it gets no other until this one is done."""
        worker.under_way.append(number)
        worker.alone = alone
        worker.send(number)

    def wait(self, seconds: float) -> list[Event]:
        """Return the events, after at most `seconds` if there are none.

        Raises UserError if no worker can load its networks.
        """
        events = []
        for worker, event in self.collect(seconds):
            if worker in self.workers:
                self._take(worker, event)
                events.append(event)
        return events

    def _take(self, worker: Handle, event: Event) -> None:
        match event.what:
            case Ready():
                worker.ready, self._has_loaded = True, True
                self._failed_starts = 0
            case Done(number=number):
                self._finish_shard(worker, number, failures=0)
            case Failed(number=number, final=final):
                self._finish_shard(worker, number, failures=worker.failures + (not final))
            case Exited():
                self.workers.remove(worker)
            case Lost(reason=reason):
                self.workers.remove(worker)
                if not worker.ready:
                    self._count_failed_start(reason, is_load_error=False)
            case LoadFailed(reason=reason):
                self.workers.remove(worker)
                worker.kill()
                worker.join()
                self._count_failed_start(reason, is_load_error=True)

    def _finish_shard(self, worker: Handle, number: int, failures: int) -> None:
        worker.under_way.remove(number)
        worker.alone, worker.failures = False, failures
        if failures >= FAILURES and not worker.leaving:
            self._dismiss(worker)

    def _dismiss(self, worker: Handle) -> None:
        worker.leaving = True
        worker.dismiss()

    def _count_failed_start(self, reason: str, *, is_load_error: bool) -> None:
        """Count a worker that died while loading, or reported an error that others would have as well.

        Raises UserError if no other worker is likely to load.
        """
        self._failed_starts += 1
        pause = min(FIRST_PAUSE * 2 ** (self._failed_starts - 1), LONGEST_PAUSE)
        self._next_start = time.monotonic() + pause
        first = 1 if is_load_error else FIRST_DEATHS
        may_recover = any(worker.ready or not self._has_loaded for worker in self.workers)
        if may_recover or self._failed_starts < (LATER_DEATHS if self._has_loaded else first):
            return
        if is_load_error:
            raise UserError(reason)
        raise UserError(
            f"{self._failed_starts} workers in a row died while loading their networks (the last: {reason});"
            " set fewer --workers or free memory, and continue with --resume"
        )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore SIGINT: a second Ctrl-C would leave workers behind, because they ignore it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
