"""Workers as the coordinator sees them: who has room, what happened, and who takes the place of the dead."""

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, Self, TypeVar

from engine.errors import UserError
from engine.generation.messages import Done, Event, Failed, Left, Lost, Ready, Unable

FIRST_DEATHS, LATER_DEATHS = 3, 20
"""Workers in a row that may end while they load and no other is at work, before one ever has loaded and once
one has."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
"""Seconds before a worker takes the place of one that ended while it loaded, doubled each time."""
FAILURES = 2
"""Shards in a row that a worker may fail before another takes its place: its device or disk may be broken."""


class WorkerHandle(ABC):
    """One worker, wherever it runs."""

    def __init__(self, name: str, depth: int) -> None:
        self.name, self.depth = name, depth
        self.ready = False
        self.leaving = False
        """Gets no more shards, and ends once it has none."""
        self.under_way: list[int] = []
        self.alone = False
        """Has a shard that no other may be beside, as it may be what its last worker died of."""
        self.failures = 0
        """Shards that it failed since the last one that it made."""

    @property
    def room(self) -> int:
        """How many shards it can be given."""
        if not self.ready or self.leaving or self.alone:
            return 0
        return self.depth - len(self.under_way)

    @abstractmethod
    def send(self, number: int) -> None:
        """One more shard to make."""

    @abstractmethod
    def dismiss(self) -> None:
        """Lets it end after the shards that it has."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it at once; what it was making is lost. Does not wait."""

    def join(self) -> None:  # noqa: B027
        """Waits until it has ended, once it was killed."""


M = TypeVar("M", bound=WorkerHandle)


class WorkerPool(ABC, Generic[M]):
    """Workers whose number follows `resize`; `wait` puts new ones in the places of the dead.

    Leaving the context ends all of them at once, those that work, too.
    """

    def __init__(self) -> None:
        self.workers: list[M] = []
        self._has_loaded = False
        self._bad_starts = 0
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
        """Workers that there is a place for; it may change."""

    @abstractmethod
    def start(self, name: str) -> M:
        """A new worker, which will say that it is ready."""

    def close(self) -> None:  # noqa: B027
        """End what starts workers, once all of them have ended."""

    @abstractmethod
    def collect(self, seconds: float) -> Iterable[tuple[M, Event]]:
        """What happened, as soon as something has or after `seconds`."""

    def resize(self, size: int) -> None:
        """Starts, or dismisses, as many workers as it takes to have `size`."""
        staying = [worker for worker in self.workers if not worker.leaving]
        if time.monotonic() >= self._next_start:
            for _ in range(size - len(staying)):
                self._started += 1
                self.workers.append(self.start(f"worker {self._started}"))
        idle_first = sorted(staying, key=lambda worker: (len(worker.under_way), worker.ready))
        for worker in idle_first[: max(0, len(staying) - size)]:
            self._dismiss(worker)

    @property
    def freest(self) -> M | None:
        """The worker with the fewest shards of those that have room for another; None where none has."""
        free = [worker for worker in self.workers if worker.room > 0]
        return min(free, key=lambda worker: len(worker.under_way), default=None)

    def give(self, worker: M, number: int, *, alone: bool = False) -> None:
        """One more shard to make, `alone` or beside those that it has and will get."""
        worker.under_way.append(number)
        worker.alone = alone
        worker.send(number)

    def wait(self, seconds: float) -> list[Event]:
        """What happened within `seconds`, which is waited for only where nothing has.

        Raises UserError where no worker can load its networks.
        """
        events = []
        for worker, event in self.collect(seconds):
            if worker in self.workers:
                self._take(worker, event)
                events.append(event)
        return events

    def _take(self, worker: M, event: Event) -> None:
        match event.what:
            case Ready():
                worker.ready, self._has_loaded = True, True
                self._bad_starts = 0
            case Done(number=number):
                self._has_ended(worker, number, failures=0)
            case Failed(number=number, final=final):
                self._has_ended(worker, number, failures=worker.failures + (not final))
            case Left():
                self.workers.remove(worker)
            case Lost(reason=reason):
                self.workers.remove(worker)
                if not worker.ready:
                    self._bad_start(reason, said=False)
            case Unable(reason=reason):
                self.workers.remove(worker)
                worker.kill()
                worker.join()
                self._bad_start(reason, said=True)

    def _has_ended(self, worker: M, number: int, failures: int) -> None:
        worker.under_way.remove(number)
        worker.alone, worker.failures = False, failures
        if failures >= FAILURES and not worker.leaving:
            self._dismiss(worker)

    def _dismiss(self, worker: M) -> None:
        worker.leaving = True
        worker.dismiss()

    def _bad_start(self, reason: str, *, said: bool) -> None:
        """Counts a worker that ended while it loaded; `said`: it gave the reason itself, as others would.

        Raises UserError where no other can be hoped for.
        """
        self._bad_starts += 1
        self._next_start = time.monotonic() + min(FIRST_PAUSE * 2 ** (self._bad_starts - 1), LONGEST_PAUSE)
        first = 1 if said else FIRST_DEATHS
        hope = any(worker.ready or not self._has_loaded for worker in self.workers)
        if hope or self._bad_starts < (LATER_DEATHS if self._has_loaded else first):
            return
        if said:
            raise UserError(reason)
        raise UserError(
            f"{self._bad_starts} workers in a row ended while they loaded their networks (the last:"
            f" {reason}); take fewer --workers, or see to the machine's memory, and go on with --resume"
        )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C would leave workers behind that ignore it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
