"""The seconds of a training, and copies of the student on the way, which are evaluated after the end."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

MOMENTS = 10
"""A copy is due after each of this many equal parts of the time."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A student at one moment of its training."""

    seconds: float
    weights: dict[str, Tensor]


@dataclass(kw_only=True)
class Clock:
    """Counts from its creation; the time of copying does not count.

    Nothing it holds can influence the training: the copies are evaluated after `stop`.
    """

    seconds: float
    """How long the training may take."""
    now: Callable[[], float] = time.perf_counter
    snapshots: list[Snapshot] = field(default_factory=list)
    begin: float = 0.0
    paused: float = 0.0

    def __post_init__(self) -> None:
        self.begin = self.now()

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return self.now() - self.begin - self.paused

    def has_time_for(self, work: float) -> bool:
        """Return whether at least half of `work` seconds of work fit into what is left."""
        return self.elapsed + work / 2 < self.seconds

    def keep(self, student: nn.Module) -> None:
        """Copy the student if a copy is due."""
        if self._moment() > (self.snapshots[-1].seconds if self.snapshots else 0.0):
            self._copy(student)

    def stop(self, student: nn.Module) -> float:
        """Copy the final student, and return the seconds that the training took."""
        self._copy(student)
        return self.snapshots[-1].seconds

    def _moment(self) -> float:
        """Return when the latest copy was due."""
        part = self.seconds / MOMENTS
        return self.elapsed // part * part

    def _copy(self, student: nn.Module) -> None:
        seconds, start = self.elapsed, self.now()
        weights = {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}
        self.snapshots.append(Snapshot(seconds=seconds, weights=weights))
        self.paused += self.now() - start
