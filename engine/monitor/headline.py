"""A generation in a few words, the same on a terminal and in a log."""

from dataclasses import dataclass

from engine.monitor.words import counted, percent, rate
from engine.progress import clock
from engine.workers.tally import Tally


@dataclass(frozen=True)
class Headline:
    """e.g. `12/100 shards`, `1.2 k images/s, kept 54 %`, `3 retries`, `0:32 left`"""

    shards: str
    pace: list[str]
    trouble: list[str]
    time: str

    @classmethod
    def of(cls, tally: Tally, *, ended: bool) -> "Headline":
        pace = [f"{rate(tally.rate)} images/s"] if tally.made else []
        pace += [] if tally.acceptance is None else [f"kept {percent(tally.acceptance)}"]
        counts = {
            counted(tally.retries, "retry", "retries"): tally.retries,
            counted(tally.workers_lost, "worker", "workers") + " lost": tally.workers_lost,
            counted(len(tally.failed), "shard", "shards") + " failed": tally.failed,
            "draining": tally.draining and not ended,
        }
        trouble = [text for text, there in counts.items() if there]
        return cls(f"{tally.committed:,}/{tally.target:,} shards", pace, trouble, _time(tally, ended))

    def __str__(self) -> str:
        return ", ".join([self.shards, *self.pace, *self.trouble, self.time])


def _time(tally: Tally, ended: bool) -> str:
    if tally.left == 0:
        return f"done in {clock(tally.elapsed)}"
    if ended:
        return f"stopped after {clock(tally.elapsed)}"
    return f"{clock(tally.elapsed)} so far" if tally.remaining is None else f"{clock(tally.remaining)} left"
