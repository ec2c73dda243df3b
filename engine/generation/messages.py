"""Messages between the coordinator and its workers.

All of them can be pickled, and importing this module loads no torch.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.bank.agreement import Agreements
from engine.bank.manifest import Header, ShardEntry
from engine.config.recipe import Recipe
from engine.terminal import PACKAGES


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to know about the bank; the same for all workers."""

    recipe: Recipe
    """Resolved recipe: the same settings on every machine."""
    url: str
    """Folder or URL of the bank; a local folder must be shared by all machines."""
    header: Header
    """Header of the bank."""
    log_level: int = logging.INFO
    """Lowest level of the log records that a worker in another process sends to the coordinator."""

    @property
    def depth(self) -> int:
        """Number of shards that a worker holds at once: with overlap, one per stage and one that waits."""
        from engine.generation.overlap import has_overlap
        from engine.generation.stages import STAGES

        return len(STAGES) + 1 if has_overlap(self.recipe) else 1


@dataclass(frozen=True)
class Started:
    """A forked worker's process runs; only `ForkedProcess` sees this message."""

    pid: int


@dataclass(frozen=True)
class Ready:
    """A worker has loaded its networks."""

    host: str
    """Name or address of the worker's machine."""
    seconds: float
    """Time that loading took."""


@dataclass(frozen=True)
class LoadFailed:
    """A worker could not load its networks and has exited."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """A shard whose files are in the bank's folder, ready for the coordinator to commit."""

    number: int
    entry: ShardEntry
    variations: int
    accepted: int
    """Number of variations that the filter kept."""
    seconds: Mapping[str, float]
    """Seconds of each stage, by name; stages of other shards may have run at the same time."""
    images: Mapping[str, int]
    """Number of images that went through each stage, by its name."""
    rss: int
    """Resident memory of the worker's process afterwards, in bytes."""
    agreements: Agreements = Agreements()
    """How often the teacher agrees with the shard's labels."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A shard that raised an exception; the worker continues."""

    number: int
    reason: str
    """The error on one line."""
    final: bool
    """Whether a retry would fail the same way: the user's mistake, or NaN or Inf."""
    trace: str
    """Traceback of an unexpected exception, else empty."""


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A log record of a worker, which the coordinator logs again."""

    logger: str
    level: int
    text: str
    """Message, with the traceback if the record has one."""


@dataclass(frozen=True)
class Exited:
    """A dismissed worker has exited."""


@dataclass(frozen=True)
class Lost:
    """A worker has died."""

    numbers: tuple[int, ...]
    """Numbers of the shards that it had been given."""
    reason: str


Report = Done | Failed | LoadFailed | Logged | Ready | Started
"""Messages that a worker sends itself."""


@dataclass(frozen=True)
class Event:
    """A message from or about the worker called `worker`."""

    worker: str
    what: Report | Exited | Lost


def forward_log(report: Callable[[Logged], None], level: int) -> None:
    """Send this process's log records at `level` and above to `report`, and nowhere else."""
    handler = _Forwarder(report)
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


class _Forwarder(logging.Handler):
    def __init__(self, report: Callable[[Logged], None]) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report(Logged(logger=record.name, level=record.levelno, text=self.format(record)))
