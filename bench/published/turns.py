"""How a published loop divides its time between images and training, if that is less than the authors had."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.clock import Clock

IMAGE_SHARE = 0.5
"""Most of the time that goes into images, as in our arms. In CSD's scripts, images take about half."""


@dataclass(kw_only=True)
class Turns:
    """Says when the next batch of images is due.

    Batches are spread evenly over the time that is left after `restart`, and over the part of IMAGE_SHARE of
    the whole time that earlier batches have left.
    """

    clock: Clock
    batches: int
    """Batches to make from `begin` on."""
    begin: float = 0.0
    made: int = 0
    before: float = 0.0
    """Seconds that the batches before `begin` took."""
    seconds: float = 0.0
    """Seconds that the batches since `begin` took."""
    latest: float = 0.0
    """Seconds that the latest batch took."""

    def make(self, batch: Callable[[], None]) -> None:
        """Make a batch and count its time."""
        start = self.clock.elapsed
        batch()
        self.latest = self.clock.elapsed - start
        self.seconds += self.latest
        self.made += 1

    def has_time_until(self, end: float) -> bool:
        """Return whether to make another batch before second `end`: always a first one, most of the last."""
        return not self.made or (self.made < self.batches and self.clock.elapsed + self.latest / 2 < end)

    def restart(self, batches: int) -> None:
        """Spread `batches` over the time that is left."""
        self.batches, self.begin, self.made = batches, self.clock.elapsed, 0
        self.before, self.seconds = self.before + self.seconds, 0.0

    @property
    def share(self) -> float:
        """Share of the time since `begin` that has passed."""
        return (self.clock.elapsed - self.begin) / (self.clock.seconds - self.begin)

    @property
    def is_due(self) -> bool:
        """Whether to make a batch now; never one whose images could be used for less time than it takes."""
        total, share = self.clock.seconds, self.share
        return (
            self.made < self.batches
            and self.made <= share * self.batches
            and self.seconds <= share * (IMAGE_SHARE * total - self.before)
            and self.clock.elapsed + 2 * self.latest < total
        )
