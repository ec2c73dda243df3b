"""The interface of observers, and a wrapper that keeps their errors from ending the generation."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from engine.generation.monitor.progress import GenerationStats

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Shows the state of a generation."""

    def update(self, stats: GenerationStats) -> None:
        """Called at the start, after every event, and about twice a second if there are none."""

    def close(self, stats: GenerationStats) -> None:
        """Called at the end, after a failure as well: show the last state, if any, and free everything."""


class Guarded:
    """Wraps an observer: log its first error, never propagate it."""

    def __init__(self, observer: Observer, name: str) -> None:
        self._observer, self._name = observer, name
        self._failed = False

    def update(self, stats: GenerationStats) -> None:
        with self._forgiving():
            self._observer.update(stats)

    def close(self, stats: GenerationStats) -> None:
        with self._forgiving():
            self._observer.close(stats)

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a file system, a network or another's library
            if not self._failed:
                kind = type(error).__name__
                logger.error("%s: %s: %s; the generation goes on", self._name, kind, error)
            self._failed = True
