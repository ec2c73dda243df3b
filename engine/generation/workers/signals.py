"""What the user asks of a generation under way by signals."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Requests:
    """SIGTERM drains: shards under way are finished, none is begun; a second one leaves them, too.

    SIGTTIN asks for one more worker, SIGTTOU for one less.
    """

    drain: bool = False
    abandon: bool = False
    more_workers: int = 0

    def workers(self, capacity: int) -> int:
        """How many are wanted where it began with `capacity`; one at least, and no debt below that."""
        self.more_workers = max(self.more_workers, 1 - capacity)
        return capacity + self.more_workers

    def _terminate(self, *_: int | FrameType | None) -> None:
        self.drain, self.abandon = True, self.drain

    def _more(self, *_: int | FrameType | None) -> None:
        self.more_workers += 1

    def _fewer(self, *_: int | FrameType | None) -> None:
        self.more_workers -= 1


@contextmanager
def requests() -> Iterator[Requests]:
    """Listens while the context lasts; to be entered by the main thread."""
    asked = Requests()
    handlers = {signal.SIGTERM: asked._terminate, signal.SIGTTIN: asked._more, signal.SIGTTOU: asked._fewer}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
