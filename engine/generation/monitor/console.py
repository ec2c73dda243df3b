"""Show a generation on the console: a live table on a terminal, an occasional log line elsewhere."""

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

from engine.generation.monitor.progress import GenerationStats, WorkerStats
from engine.progress import clock, counted, one_line, percent, rate
from engine.terminal import console

logger = logging.getLogger(__name__)

INTERVAL = 10.0
"""Minimum number of seconds between two log lines."""
MAX_WORKERS = 12
"""Maximum number of workers with a line of their own; the others share one."""
OTHER_LINES = 17
"""Maximum number of lines without the workers, on a narrow terminal."""
MAX_ERRORS = 3
"""Maximum number of error reasons shown."""
MAX_FAILED = 10
"""Maximum number of failed shards listed."""


class View:
    """An observer that redraws a table twice a second on a terminal, and logs lines elsewhere.

    It draws only if the logger of this module is enabled for INFO.
    """

    def __init__(self, given: Console | None = None) -> None:
        self._console = given or console()
        is_drawable = self._console.is_terminal and not self._console.is_dumb_terminal
        self._animated = is_drawable and logger.isEnabledFor(logging.INFO)
        self._live: Live | None = None
        self._ended = False
        self._logged_at, self._logged = -INTERVAL, ""

    def update(self, stats: GenerationStats) -> None:
        if not self._animated:
            self._log_news(stats)
        elif self._live is None:
            self._live = Live(
                get_renderable=lambda: self._render(stats), console=self._console, refresh_per_second=2
            )
            self._live.start()

    def close(self, stats: GenerationStats) -> None:
        self._ended = True
        if self._live is not None:
            self._live.stop()
        elif self._logged:
            logger.info("%s", Headline.of(stats, ended=True))

    def _render(self, stats: GenerationStats) -> RenderableType:
        """Return the table; the drawing thread calls this."""
        return render(stats.copy(), monotonic(), height=self._console.height, ended=self._ended)

    def _log_news(self, stats: GenerationStats) -> None:
        """Log a line if the number of shards or the problems have changed."""
        line = Headline.of(stats, ended=False)
        news = f"{line.shards} {line.problems}"
        if news != self._logged and monotonic() >= self._logged_at + INTERVAL:
            logger.info("%s", line)
            self._logged_at, self._logged = monotonic(), news


@dataclass(frozen=True)
class Headline:
    """A summary, e.g. `12/100 shards`, `1.2 k images/s, kept 54 %`, `3 retries`, `0:32 left`."""

    shards: str
    pace: list[str]
    problems: list[str]
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
        problems = [text for text, is_shown in counts.items() if is_shown]
        return cls(f"{stats.committed:,}/{stats.target:,} shards", pace, problems, _time(stats, ended))

    def __str__(self) -> str:
        return ", ".join([self.shards, *self.pace, *self.problems, self.time])


def _time(stats: GenerationStats, ended: bool) -> str:
    if stats.left == 0:
        return f"done in {clock(stats.elapsed)}"
    if ended:
        return f"stopped after {clock(stats.elapsed)}"
    return f"{clock(stats.elapsed)} so far" if stats.remaining is None else f"{clock(stats.remaining)} left"


def render(stats: GenerationStats, now: float, *, height: int, ended: bool) -> RenderableType:
    """Return headline, errors and tables for a terminal of `height` lines; `now`: `time.monotonic()`."""
    lines = max(3, min(MAX_WORKERS, height - OTHER_LINES))
    tables = [table for table in (_stages(stats), _workers(stats, now, lines)) if table.row_count]
    blocks = [*_head(stats, ended), *_errors(stats)]
    if tables:
        blocks += ["", Columns(tables, padding=(1, 6))]
    return Group(*blocks)


def _head(stats: GenerationStats, ended: bool) -> Iterator[RenderableType]:
    line = Headline.of(stats, ended=ended)
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    bar = ProgressBar(total=max(stats.target, 1), completed=stats.committed)
    row.add_row(Text(line.shards, "bold"), bar, Text(line.time, "cyan"))
    yield row
    if line.pace or line.problems:
        texts = [Text(text) for text in line.pace] + [Text(text, "yellow") for text in line.problems]
        yield Text("   ").join(texts)


def _errors(stats: GenerationStats) -> Iterator[RenderableType]:
    for reason, count in stats.errors.most_common(MAX_ERRORS):
        yield Text(f"{count:,} x {one_line(reason)}", "yellow", no_wrap=True, overflow="ellipsis")
    if stats.failed:
        numbers = sorted(stats.failed)
        rest = len(numbers) - MAX_FAILED
        shown = ", ".join(map(str, numbers[:MAX_FAILED])) + (f" and {rest:,} more" if rest > 0 else "")
        yield Text(f"failed shards: {shown}", "red")


def _stages(stats: GenerationStats) -> Table:
    table = _table("stage", "images", "images/s a worker", "time")
    total = sum(stage.seconds for stage in stats.stages.values())
    for name, stage in stats.stages.items():
        share = f"{100 * stage.seconds / max(total, 1e-9):.0f} %"
        table.add_row(Text(name), f"{stage.images:,}", rate(stage.rate()), share)
    return table


def _workers(stats: GenerationStats, now: float, lines: int) -> Table:
    """Return a table of the busiest `lines` workers, with one more line for all others."""
    table = _table("worker", "shards", "images/s", "memory", "")
    ranked = sorted(stats.workers.items(), key=lambda item: (not item[1].alive, -item[1].images))
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
