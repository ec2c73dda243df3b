"""Signals that control a running generation."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from engine.terminal import interrupt


@dataclass
class Requests:
    """What the signals so far ask for.

    SIGTERM drains: finish the shards under way and start no others. A second SIGTERM, or one before there may
    be shards under way, raises Terminated. SIGTTIN adds a worker, SIGTTOU removes one.
    """

    can_drain: bool = False
    """Whether there may be shards under way."""
    drain: bool = False
    more_workers: int = 0

    def workers(self, capacity: int) -> int:
        """Return the number of workers to run: `capacity` plus the requested change, at least one.

        Requests to go below one worker are dropped, so the next SIGTTIN adds a worker again.
        """
        self.more_workers = max(self.more_workers, 1 - capacity)
        return capacity + self.more_workers

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if self.drain or not self.can_drain:
            interrupt(number, frame)
        self.drain = True

    def _more(self, *_: int | FrameType | None) -> None:
        self.more_workers += 1

    def _fewer(self, *_: int | FrameType | None) -> None:
        self.more_workers -= 1


@contextmanager
def handle_signals() -> Iterator[Requests]:
    """Handle the signals while the context lasts. Enter it in the main thread."""
    requests = Requests()
    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        signal.SIGTERM: requests._terminate,
        signal.SIGTTIN: requests._more,
        signal.SIGTTOU: requests._fewer,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
