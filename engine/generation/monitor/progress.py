"""Statistics of a running generation, and the interface of the observers that show them."""

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Protocol

from engine.bank.agreement import Agreements
from engine.generation.messages import Done, Event, Exited, Failed, LoadFailed, Lost, Ready


@dataclass(kw_only=True)
class WorkerStats:
    """Statistics of one worker, which may have exited."""

    since: float
    """`time.monotonic()` when it had loaded its networks."""
    host: str = ""
    """Name or address of its machine."""
    shards: int = 0
    images: int = 0
    """Number of images that it made, including rejected ones."""
    rss: int = 0
    """Resident memory after its last shard, in bytes."""
    alive: bool = True
    lost: bool = False
    """Whether it died; other workers that are not alive were dismissed or could not load."""

    def rate(self, now: float) -> float:
        """Return its images per second since it had loaded, at `time.monotonic()` = `now`."""
        return self.images / max(now - self.since, 1e-9)


@dataclass(kw_only=True)
class StageStats:
    """Statistics of one stage over all workers and shards."""

    images: int = 0
    seconds: float = 0.0
    """Seconds spent in the stage, summed over workers."""

    def rate(self) -> float:
        """Return the images per second of one worker in this stage."""
        return self.images / max(self.seconds, 1e-9)


@dataclass(kw_only=True)
class GenerationStats:
    """Counts of one command, which may resume a bank. Pass every event to `take`, Done once committed."""

    target: int
    """Number of shards that the bank should have."""
    found: int
    """Number of those shards that it had at the start."""
    started: float = field(default_factory=time.monotonic)
    made: int = 0
    """Number of shards committed by this command."""
    rows: int = 0
    """Number of images of those shards, including rejected ones."""
    images: int = 0
    """Number of kept images."""
    variations: int = 0
    accepted: int = 0
    """Number of variations that the filter kept."""
    agreements: Agreements = Agreements()
    """How often the teacher agrees with the labels of those shards."""
    retries: int = 0
    workers_lost: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Number of failures and lost workers by reason, including failures that a retry resolved."""
    failed: dict[int, str] = field(default_factory=dict)
    """Shards that failed for good, with the last reason."""
    stages: dict[str, StageStats] = field(default_factory=dict)
    workers: dict[str, WorkerStats] = field(default_factory=dict)
    draining: bool = False

    def begin(self, found: int) -> None:
        """Set the number of shards that exist already, and start the clock."""
        self.found, self.started = found, time.monotonic()

    def take(self, event: Event) -> None:
        """Count an event."""
        worker = self.workers.setdefault(event.worker, WorkerStats(since=time.monotonic()))
        match event.what:
            case Done() as done:
                self._done(done, worker)
            case Failed() as failed:
                self.errors[failed.reason] += 1
            case Ready() as ready:
                worker.since, worker.host = time.monotonic(), ready.host
            case Exited():
                worker.alive = False
            case Lost() as lost:
                worker.alive, worker.lost = False, True
                self.workers_lost += 1
                self.errors[lost.reason] += 1
            case LoadFailed() as failed:
                worker.alive = False
                self.errors[failed.reason] += 1

    def copy(self) -> "GenerationStats":
        """Return a copy that another thread can iterate over while this one changes."""
        return replace(
            self,
            errors=self.errors.copy(),
            failed=self.failed.copy(),
            stages=self.stages.copy(),
            workers=self.workers.copy(),
        )

    def _done(self, done: Done, worker: WorkerStats) -> None:
        worker.shards += 1
        worker.images += done.entry.rows
        worker.rss = done.rss
        self.made += 1
        self.rows += done.entry.rows
        self.images += done.entry.images
        self.variations += done.variations
        self.accepted += done.accepted
        self.agreements += done.agreements
        for name, seconds in done.seconds.items():
            stage = self.stages.setdefault(name, StageStats())
            stage.seconds += seconds
            stage.images += done.images.get(name, 0)

    @property
    def committed(self) -> int:
        """Number of shards that the bank has by now."""
        return self.found + self.made

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Images per second of all workers, including rejected ones."""
        return self.rows / max(self.elapsed, 1e-9)

    @property
    def left(self) -> int:
        """Number of shards that are neither committed nor failed."""
        return self.target - self.committed - len(self.failed)

    @property
    def remaining(self) -> float | None:
        """Estimated seconds to the end; None before the first shard."""
        return self.left * self.elapsed / self.made if self.made else None

    @property
    def acceptance(self) -> float | None:
        """Share of the variations that the filter kept; None without variations."""
        return self.accepted / self.variations if self.variations else None


class Observer(Protocol):
    """Shows the statistics of a generation."""

    def update(self, stats: GenerationStats) -> None:
        """Show the statistics. Called at the start, after events, and about twice a second without events."""

    def close(self, stats: GenerationStats) -> None:
        """Show the final statistics and free all resources. Called at the end, even after an error."""
