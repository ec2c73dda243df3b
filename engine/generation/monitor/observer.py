"""What every observer offers the coordinator, and the rule that watching never ends what is watched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from engine.generation.monitor.progress import GenerationStats


class Observer(Protocol):
    """Shows a generation to someone."""

    def update(self, stats: GenerationStats) -> None:
        """After every event, and about once a second where none comes; the first is the beginning."""

    def close(self, stats: GenerationStats) -> None:
        """The generation has ended, well or not: the last word, where there was a first, and all is freed."""


class Guarded:
    """An observer of which the first failure is said, and none ends the generation."""

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
