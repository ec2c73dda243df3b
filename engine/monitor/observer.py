"""What every observer offers the coordinator, and the rule that watching never ends what is watched."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from engine.workers.tally import Tally

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Shows a generation to someone."""

    def update(self, tally: Tally) -> None:
        """After every event, and about once a second where none comes; the first is the beginning."""

    def close(self, tally: Tally) -> None:
        """The generation has ended, well or not: the last word, where there was a first, and all is freed."""


class Guarded:
    """Wraps an observer: logs its first error and never propagates one."""

    def __init__(self, observer: Observer, name: str) -> None:
        self._observer, self._name = observer, name
        self._failed = False

    def update(self, tally: Tally) -> None:
        with self._forgiving():
            self._observer.update(tally)

    def close(self, tally: Tally) -> None:
        with self._forgiving():
            self._observer.close(tally)

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a file system, a network or another's library
            if not self._failed:
                kind = type(error).__name__
                logger.error("%s: %s: %s; the generation goes on", self._name, kind, error)
            self._failed = True
