"""What the coordinator and its workers tell one another.

All of it can be sent between processes and loads no torch.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from engine.bank.agreement import Agreements
from engine.bank.manifest import Header, ShardEntry
from engine.config.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Done:
    """A shard whose files are in the bank's folder; the coordinator commits it."""

    number: int
    entry: ShardEntry
    variations: int
    accepted: int
    """Of the variations."""
    seconds: Mapping[str, float]
    """By stage, of this shard; stages of other shards may have run beside them."""
    images: Mapping[str, int]
    """By stage: the images that went through it."""
    rss: int
    """Bytes that the worker's process holds afterwards."""
    agreements: Agreements = Agreements()
    """Of the teacher with the shard's labels."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A shard that an exception ended; the worker goes on."""

    number: int
    reason: str
    """One line."""
    final: bool
    """Whether another try would end alike: the user's mistake, or numbers that are not finite."""
    trace: str
    """The whole traceback, for what nobody expected; else empty."""


@dataclass(frozen=True)
class Started:
    """A forked worker's process runs; only `Forked` sees this."""

    pid: int


@dataclass(frozen=True)
class Ready:
    """A worker has loaded its networks."""

    host: str
    """Name or address of its machine."""
    seconds: float
    """That it took."""


@dataclass(frozen=True)
class Unable:
    """A worker could not load its networks, and has ended."""

    reason: str


@dataclass(frozen=True)
class Left:
    """A worker that was dismissed has ended."""


@dataclass(frozen=True)
class Lost:
    """A worker has died."""

    numbers: tuple[int, ...]
    """The shards that it had been given."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A log record of a worker, which the coordinator logs again."""

    logger: str
    level: int
    text: str
    """With its traceback, if it has one."""


Report = Done | Failed | Logged | Ready | Started | Unable
"""What a worker says itself."""


@dataclass(frozen=True)
class Event:
    """Something that happened to the worker of that name."""

    worker: str
    what: Report | Left | Lost


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to know of the bank, the same for all its workers."""

    recipe: Recipe
    """Resolved: the same settings on every machine."""
    url: str
    """The bank's folder or URL; local folders must be shared by all machines."""
    header: Header
    """The bank's."""
    log_level: int = logging.INFO
    """Lowest level of the records that a worker in another process sends to the coordinator."""

    @property
    def depth(self) -> int:
        """Shards that a worker has at once: with overlap one for each stage, and one that waits."""
        from engine.generation.overlap import has_overlap
        from engine.generation.stages import STAGES

        return len(STAGES) + 1 if has_overlap(self.recipe) else 1
