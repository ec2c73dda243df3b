"""The interface of observers, and a wrapper that keeps their errors from ending the generation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from engine.generation.monitor.progress import GenerationStats


class Observer(Protocol):
    """Shows the state of a generation."""

    def update(self, stats: GenerationStats) -> None:
        """Called at the start, after every event, and about twice a second if there are none."""

    def close(self, stats: GenerationStats) -> None:
        """Called at the end, after a failure as well: show the last state, if any, and free everything."""


class Guarded:
    """Wraps an observer: log its first error, never propagate it."""

    def __init__(self, observer: Observer, name: str, say: Callable[[str], None]) -> None:
        self._observer, self._name, self._say = observer, name, say
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
                self._say(f"{self._name}: {type(error).__name__}: {error}; the generation goes on")
            self._failed = True
