"""Example statistics for the tests of the observers."""

import time
from typing import Any

from engine.bank.manifest import ShardEntry
from engine.generation.messages import Done, Event, Failed, Lost, Ready
from engine.generation.monitor.progress import GenerationStats


def done(number: int, *, rows: int = 120, images: int = 72, seconds: float = 2.0) -> Done:
    """Return a shard of 12 sources and `rows` - 12 variations, with `images` kept images."""
    return Done(
        number=number,
        entry=ShardEntry(files={}, rows=rows, images=images),
        variations=rows - 12,
        accepted=images - 12,
        seconds={"synthesize": seconds, "augment": 3 * seconds},
        images={"synthesize": 12, "augment": rows - 12},
        rss=10**9,
    )


def at_work(**changes: Any) -> GenerationStats:
    """Return statistics: 5 of 10 shards found, 2 made by two workers in 100 s, 1 failed; 1 worker lost."""
    stats = GenerationStats(target=10, found=5, started=time.monotonic() - 100)
    for worker in ("a", "b"):
        stats.take(Event(worker, Ready("here", 1.0)))
        stats.workers[worker].since -= 100
    stats.take(Event("a", done(5)))
    stats.take(Event("b", done(6)))
    stats.take(Event("a", Failed(number=7, reason="out of\nmemory [b]", final=False, trace="")))
    stats.take(Event("a", Failed(number=7, reason="out of\nmemory [b]", final=True, trace="")))
    stats.take(Event("b", Lost((8,), "signal 9")))
    stats.retries, stats.failed = 1, {7: "out of\nmemory [b]"}
    for name, value in changes.items():
        setattr(stats, name, value)
    return stats
