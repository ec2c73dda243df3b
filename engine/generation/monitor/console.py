"""Show a generation: a live table of some twenty lines on a terminal, elsewhere a line now and then."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.generation.monitor.format import counted, one_line, percent, rate
from engine.generation.monitor.progress import GenerationStats, WorkerStats
from engine.progress import clock
from engine.terminal import console


@dataclass(frozen=True)
class Headline:
    """e.g. `12/100 shards`, `1.2 k images/s, kept 54 %`, `3 retries`, `0:32 left`"""

    shards: str
    pace: list[str]
    trouble: list[str]
    time: str

    @classmethod
    def of(cls, stats: GenerationStats, *, ended: bool) -> "Headline":
        pace = [f"{rate(stats.rate)} images/s"] if stats.made else []
        pace += [] if stats.acceptance is None else [f"kept {percent(stats.acceptance)}"]
        counts = {
            counted(stats.retries, "retry", "retries"): stats.retries,
            counted(stats.workers_lost, "worker", "workers") + " lost": stats.workers_lost,
            counted(len(stats.failed), "shard", "shards") + " failed": stats.failed,
            "draining": stats.draining and not ended,
        }
        trouble = [text for text, there in counts.items() if there]
        return cls(f"{stats.committed:,}/{stats.target:,} shards", pace, trouble, _time(stats, ended))

    def __str__(self) -> str:
        return ", ".join([self.shards, *self.pace, *self.trouble, self.time])


def _time(stats: GenerationStats, ended: bool) -> str:
    if stats.left == 0:
        return f"done in {clock(stats.elapsed)}"
    if ended:
        return f"stopped after {clock(stats.elapsed)}"
    return f"{clock(stats.elapsed)} so far" if stats.remaining is None else f"{clock(stats.remaining)} left"


WORKERS = 12
"""At most so many lines of the table of workers; the others share one."""
OTHER_LINES = 17
"""At most, on a narrow terminal."""
ERRORS = 3
FAILED = 10


def picture(stats: GenerationStats, now: float, *, height: int, ended: bool) -> RenderableType:
    """`now`: what time.monotonic() says; `height`: lines of the terminal; the workers get what is left."""
    lines = max(3, min(WORKERS, height - OTHER_LINES))
    tables = [table for table in (_stages(stats), _workers(stats, now, lines)) if table.row_count]
    parts = [*_head(stats, ended), *_errors(stats)]
    if tables:
        parts += ["", Columns(tables, padding=(1, 6))]
    return Group(*parts)


def _head(stats: GenerationStats, ended: bool) -> Iterator[RenderableType]:
    line = Headline.of(stats, ended=ended)
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    bar = ProgressBar(total=max(stats.target, 1), completed=stats.committed)
    row.add_row(Text(line.shards, "bold"), bar, Text(line.time, "cyan"))
    yield row
    if line.pace or line.trouble:
        parts = [Text(text) for text in line.pace] + [Text(text, "yellow") for text in line.trouble]
        yield Text("   ").join(parts)


def _errors(stats: GenerationStats) -> Iterator[RenderableType]:
    for reason, count in stats.errors.most_common(ERRORS):
        yield Text(f"{count:,} x {one_line(reason)}", "yellow", no_wrap=True, overflow="ellipsis")
    if stats.failed:
        numbers = sorted(stats.failed)
        rest = len(numbers) - FAILED
        shown = ", ".join(map(str, numbers[:FAILED])) + (f" and {rest:,} more" if rest > 0 else "")
        yield Text(f"failed shards: {shown}", "red")


def _stages(stats: GenerationStats) -> Table:
    table = _table("stage", "images", "images/s a worker", "time")
    whole = sum(stage.seconds for stage in stats.stages.values())
    for name, stage in stats.stages.items():
        share = f"{100 * stage.seconds / max(whole, 1e-9):.0f} %"
        table.add_row(Text(name), f"{stage.images:,}", rate(stage.rate()), share)
    return table


def _workers(stats: GenerationStats, now: float, lines: int) -> Table:
    """The busiest ones, and one line for all others."""
    table = _table("worker", "shards", "images/s", "memory", "")
    ranked = sorted(stats.workers.items(), key=lambda it: (not it[1].alive, -it[1].images))
    for name, worker in ranked[:lines]:
        state = "" if worker.alive else "lost" if worker.lost else "ended"
        cells = _cells(worker.shards, worker.rate(now), worker.rss)
        table.add_row(Text(name), *cells, state, style="" if worker.alive else "dim")
    rest = [worker for _, worker in ranked[lines:]]
    if rest:
        table.add_row(f"{len(rest):,} more", *_sums(rest, now), style="dim")
    return table


def _sums(workers: list[WorkerStats], now: float) -> list[str]:
    alive = [worker for worker in workers if worker.alive]
    return _cells(
        sum(worker.shards for worker in workers),
        sum(worker.rate(now) for worker in alive),
        sum(worker.rss for worker in alive),
    )


def _cells(shards: int, per_second: float, rss: int) -> list[str]:
    return [f"{shards:,}", rate(per_second), decimal(rss) if rss else ""]


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, no_wrap=True, max_width=24)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


logger = logging.getLogger(__name__)

EVERY = 10.0
"""Seconds between two lines, at least."""


class View:
    """Draws itself twice a second on a terminal, if the logger of this module is enabled for INFO."""

    def __init__(self, given: Console | None = None) -> None:
        self._console = given or console()
        is_drawable = self._console.is_terminal and not self._console.is_dumb_terminal
        self._animated = is_drawable and logger.isEnabledFor(logging.INFO)
        self._live: Live | None = None
        self._ended = False
        self._line_at, self._line_of = -EVERY, ""

    def update(self, stats: GenerationStats) -> None:
        if not self._animated:
            self._line(stats)
        elif self._live is None:
            self._live = Live(
                get_renderable=lambda: self._picture(stats), console=self._console, refresh_per_second=2
            )
            self._live.start()

    def close(self, stats: GenerationStats) -> None:
        self._ended = True
        if self._live is not None:
            self._live.stop()
        elif self._line_of:
            logger.info("%s", Headline.of(stats, ended=True))

    def _picture(self, stats: GenerationStats) -> RenderableType:
        """Called by the thread that draws."""
        return picture(stats.copy(), monotonic(), height=self._console.height, ended=self._ended)

    def _line(self, stats: GenerationStats) -> None:
        """Only where there is news."""
        line = Headline.of(stats, ended=False)
        news = f"{line.shards} {line.trouble}"
        if news != self._line_of and monotonic() >= self._line_at + EVERY:
            logger.info("%s", line)
            self._line_at, self._line_of = monotonic(), news
