"""Write `.status.json` into the bank while it is generated, and read it for `--status`."""

import json
import math
import os
import socket
import time
from dataclasses import asdict, dataclass
from time import monotonic
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from engine.bank.manifest import STATUS
from engine.bank.storage import Storage
from engine.generation.monitor.progress import GenerationStats
from engine.progress import one_line

RUNNING, DRAINING, DONE, FAILED_SHARDS, STOPPED = "running", "draining", "done", "failed shards", "stopped"
"""Values of `Record.state`."""
MAX_ERRORS = 10
"""Maximum number of error reasons in the file."""
INTERVAL = 5.0
"""Minimum number of seconds between two writes."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of the file: counts of the writer's command; `started` and `updated` are Unix times."""

    state: str
    """RUNNING, DRAINING, DONE, FAILED_SHARDS or STOPPED."""
    target: int
    found: int
    made: int
    failed: dict[str, str]
    """Reasons of the shards that failed for good, by shard number."""
    errors: dict[str, int]
    """Counts of the most frequent reasons, including failures that a retry resolved."""
    rows: int
    images: int
    acceptance: float | None
    retries: int
    workers_alive: int
    workers_lost: int
    stages: dict[str, dict[str, Any]]
    workers: dict[str, dict[str, Any]]
    images_per_second: float
    remaining_seconds: float | None
    started: float
    updated: float
    host: str
    pid: int
    warning: str | None = None
    """What seems wrong with the images, if anything."""

    @classmethod
    def of(cls, stats: GenerationStats, *, ended: bool) -> "Record":
        """Return the record of this process's generation."""
        now = time.time()
        clock = time.monotonic()
        return cls(
            state=_state(stats, ended),
            target=stats.target,
            found=stats.found,
            made=stats.made,
            failed={str(number): one_line(reason) for number, reason in sorted(stats.failed.items())},
            errors={one_line(reason): count for reason, count in stats.errors.most_common(MAX_ERRORS)},
            rows=stats.rows,
            images=stats.images,
            acceptance=stats.acceptance,
            retries=stats.retries,
            workers_alive=sum(worker.alive for worker in stats.workers.values()),
            workers_lost=stats.workers_lost,
            stages={
                name: asdict(stage) | {"images_per_second": stage.rate()}
                for name, stage in stats.stages.items()
            },
            workers={
                name: {
                    "host": worker.host,
                    "shards": worker.shards,
                    "images": worker.images,
                    "images_per_second": worker.rate(clock),
                    "rss_bytes": worker.rss,
                    "alive": worker.alive,
                }
                for name, worker in stats.workers.items()
            },
            images_per_second=stats.rate,
            remaining_seconds=stats.remaining,
            started=now - stats.elapsed,
            updated=now,
            host=socket.gethostname(),
            pid=os.getpid(),
            warning=stats.agreements.warning,
        )

    @property
    def patience(self) -> float:
        """Seconds without an update after which the writer counts as dead.

        Three times what a worker takes for a shard, at least a minute; before the first shard, ten minutes.
        """
        if not self.made:
            return 600.0
        return max(60.0, 3 * (self.updated - self.started) * max(self.workers_alive, 1) / self.made)

    def to_json(self) -> bytes:
        """Return the content of the file."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Record":
        """Read the content of the file. Raises ValueError if `to_json` did not write it."""
        try:
            record = cls(**json.loads(data))
        except TypeError as error:
            raise ValueError(str(error)) from None
        for name, kind in get_type_hints(cls).items():
            if not _fits(getattr(record, name), kind):
                raise ValueError(f"{name} is not of type {kind}")
        return record


class StatusFile:
    """An observer that writes the file. After a failed write it waits as long as after a successful one."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._written: float | None = None

    def update(self, stats: GenerationStats) -> None:
        if self._written is None or monotonic() >= self._written + INTERVAL:
            self._write(stats, ended=False)

    def close(self, stats: GenerationStats) -> None:
        if self._written is not None:
            self._write(stats, ended=True)

    def _write(self, stats: GenerationStats, *, ended: bool) -> None:
        try:
            self._storage.write(STATUS, Record.of(stats, ended=ended).to_json())
        finally:
            self._written = monotonic()


def _state(stats: GenerationStats, ended: bool) -> str:
    if not ended:
        return DRAINING if stats.draining else RUNNING
    if stats.left:
        return STOPPED
    return FAILED_SHARDS if stats.failed else DONE


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is (get_origin(kind) or kind)
