"""What a worker tells the coordinator; all of it can be sent between processes."""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.bank.agreement import Agreements
from engine.bank.manifest import ShardEntry


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
