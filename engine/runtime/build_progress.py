"""How far the build of an engine is, in lines few enough to read."""

import time
from collections.abc import Callable
from typing import Self

EVERY = 10.0
"""Seconds between two lines."""


class BuildProgress:
    """`step` takes what a builder reports; `say` gets a line every ten seconds, and one at the end."""

    def __init__(self, network: str, say: Callable[[str], None]) -> None:
        self._network, self._say = network, say
        self._begun = self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._say(f"{self._network}: engine built in {time.monotonic() - self._begun:.1f} s")

    def step(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` steps of `phase`; phases are nested."""
        now = time.monotonic()
        if now - self._said >= EVERY:
            self._said = now
            self._say(f"{self._network}: {now - self._begun:.0f} s, {phase} {done}/{total}")
