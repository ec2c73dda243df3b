"""Statistics of a running generation, which the observers read."""

import time
from collections import Counter
from dataclasses import dataclass, field, replace

from engine.bank.agreement import Agreements
from engine.generation.messages import Done, Event, Failed, Left, Lost, Ready, Unable


@dataclass(kw_only=True)
class WorkerStats:
    """Of one worker, which may be dead by now."""

    since: float
    """Clock when it had loaded its networks."""
    host: str = ""
    """Name or address of its machine."""
    shards: int = 0
    images: int = 0
    """All that it made, rejected ones too."""
    rss: int = 0
    """Bytes, after its last shard."""
    alive: bool = True
    lost: bool = False
    """Whether it has died; others that are not alive were dismissed or could not load."""

    def rate(self, now: float) -> float:
        """Images a second since it had loaded."""
        return self.images / max(now - self.since, 1e-9)


@dataclass(kw_only=True)
class StageStats:
    """Of one stage, over all workers and shards."""

    images: int = 0
    seconds: float = 0.0
    """Worker-seconds: of two workers side by side, both."""

    def rate(self) -> float:
        """Images a second of one worker in this stage."""
        return self.images / max(self.seconds, 1e-9)


@dataclass(kw_only=True)
class GenerationStats:
    """Counts of this command unless said otherwise; `take` every event, a Done once it is committed."""

    target: int
    """Shards that the bank shall have."""
    found: int
    """Shards that it had at the start, in range."""
    started: float = field(default_factory=time.monotonic)
    made: int = 0
    """Shards committed."""
    rows: int = 0
    """Images of those shards, rejected ones too."""
    images: int = 0
    """The kept ones."""
    variations: int = 0
    accepted: int = 0
    """Of the variations."""
    agreements: Agreements = Agreements()
    """Of the teacher with the labels of those shards."""
    retries: int = 0
    workers_lost: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Reasons of all failures and losses, those that were mended by another try too."""
    failed: dict[int, str] = field(default_factory=dict)
    """Shards given up, with the last reason."""
    stages: dict[str, StageStats] = field(default_factory=dict)
    workers: dict[str, WorkerStats] = field(default_factory=dict)
    draining: bool = False

    def begin(self, found: int) -> None:
        """So many shards are there already, and the work on the others begins now."""
        self.found, self.started = found, time.monotonic()

    def take(self, event: Event) -> None:
        worker = self.workers.setdefault(event.worker, WorkerStats(since=time.monotonic()))
        match event.what:
            case Done() as done:
                self._done(done, worker)
            case Failed() as failed:
                self.errors[failed.reason] += 1
            case Ready() as ready:
                worker.since, worker.host = time.monotonic(), ready.host
            case Left():
                worker.alive = False
            case Lost() as lost:
                worker.alive, worker.lost = False, True
                self.workers_lost += 1
                self.errors[lost.reason] += 1
            case Unable() as unable:
                worker.alive = False
                self.errors[unable.reason] += 1

    def copy(self) -> "GenerationStats":
        """What another thread may walk through while this one is counted on."""
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
        """Shards that the bank has by now, in range."""
        return self.found + self.made

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Images a second of all workers, rejected ones too."""
        return self.rows / max(self.elapsed, 1e-9)

    @property
    def left(self) -> int:
        """Shards neither committed nor given up."""
        return self.target - self.committed - len(self.failed)

    @property
    def remaining(self) -> float | None:
        """Seconds to the end at the pace so far; None before the first shard."""
        return self.left * self.elapsed / self.made if self.made else None

    @property
    def acceptance(self) -> float | None:
        """Share of the variations that the filter kept; None of none."""
        return self.accepted / self.variations if self.variations else None
