"""Show the progress of each stage, as bars on a terminal or log lines elsewhere, and count units and time."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from engine.terminal import console

logger = logging.getLogger(__name__)

FIRST_LINE, EVERY_LINE = 3.0, 30.0
"""Seconds into a stage after which its first line and the later ones are logged without a terminal."""


@dataclass(kw_only=True)
class Stage:
    """The progress of one stage. The code that does the work calls `advance` and `note`."""

    name: str
    unit: str
    total: int = 0
    """Units of the entries so far, or of the whole run if that was announced and is larger."""
    begun: int = 0
    """Units of the entries so far."""
    done: int = 0
    """Finished units."""
    entered: float = 0.0
    """Time of the last entry, by `time.perf_counter`."""
    seconds: float = 0.0
    """Seconds spent in the entries that have ended."""
    next_line: float = 0.0
    """Time of the next line without a terminal."""
    text: str = ""
    preparing: str = ""
    """What it does at the moment to prepare its work, if anything."""
    prepared: float = 0.0
    """Seconds spent on that, over all entries; they are in `seconds`, but not in the rate."""
    active: bool = False
    """Whether the stage is entered now."""
    changed: Callable[["Stage"], None]
    """Callback after every change of `done`."""

    def advance(self, count: int = 1) -> None:
        """Count `count` more finished units."""
        self.done += count
        self.changed(self)

    def note(self, text: str) -> None:
        """Set a few words to show after the rate, such as `kept 71 %`."""
        self.text = text

    @contextmanager
    def preparation(self, doing: str) -> Iterator[Callable[[float], None]]:
        """Show `doing`, such as `warming up`; this block's seconds do not count for rate and time left.

        Yields a function to call with the finished share of the preparation.
        """
        start = time.perf_counter()

        def show(share: float) -> None:
            self.preparing = f"{doing}: {percent(share)}"
            self.changed(self)

        show(0.0)
        try:
            yield show
        finally:
            self.preparing = ""
            self.prepared += time.perf_counter() - start

    def elapsed(self) -> float:
        """Return the seconds spent in this stage, over all entries."""
        return self.seconds + (time.perf_counter() - self.entered if self.active else 0.0)

    def rate(self) -> float:
        """Return the units per second, without the time of preparations."""
        return self.done / max(self.elapsed() - self.prepared, 1e-9)

    def remaining(self) -> float | None:
        """Return the estimated seconds to the end of `total`, or None before the first unit."""
        return (self.total - self.done) / self.rate() if self.done else None


class Progress:
    """The progress of a run: `with progress.stage("augment", total=600, unit="images") as stage: ...`

    A later round may enter a stage again, which continues its bar, seconds and counts. `seconds` and `counts`
    hold the values of ended entries by stage; a resumed run sets them to its earlier values. Bars and log
    lines appear only if this module's logger is enabled for INFO.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._stages: dict[str, Stage] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars = RichProgress(
            TextColumn("{task.description:<10}", style="bold", markup=False),
            BarColumn(bar_width=24),
            _StageColumn(),
            console=console(),
            disable=quiet or not logger.isEnabledFor(logging.INFO) or not sys.stdout.isatty(),
        )
        self._logs_lines = self._bars.disable and not quiet

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def announce(self, name: str, *, total: int, unit: str) -> None:
        """Set the units of a stage over the whole run, so that its time left covers all later entries."""
        stage = self._stages.get(name) or self._add(name, unit)
        stage.total = total
        self._draw(stage)

    @contextmanager
    def stage(self, name: str, *, total: int, unit: str) -> Iterator[Stage]:
        """Enter the stage `name` for `total` more units, and yield the Stage to advance."""
        stage = self._stages.get(name) or self._add(name, unit)
        first, prepared = stage.done, stage.prepared
        stage.begun += total
        stage.total = max(stage.total, stage.begun)
        stage.entered, stage.active = time.perf_counter(), True
        stage.next_line = stage.entered + FIRST_LINE
        self._draw(stage)
        try:
            yield stage
        finally:
            spent = time.perf_counter() - stage.entered
            stage.seconds, stage.active = stage.seconds + spent, False
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            self.counts[name] = self.counts.get(name, 0) + stage.done - first
            self._draw(stage)
        if self._logs_lines:
            logger.info(_summary(stage, stage.done - first, spent, stage.prepared - prepared))

    def _add(self, name: str, unit: str) -> Stage:
        stage = self._stages[name] = Stage(name=name, unit=unit, changed=self._draw)
        self._tasks[name] = self._bars.add_task(name, total=None, stage=stage)
        return stage

    def _draw(self, stage: Stage) -> None:
        self._bars.update(self._tasks[stage.name], total=stage.total, completed=stage.done)
        if self._logs_lines and stage.active and time.perf_counter() >= stage.next_line:
            stage.next_line = time.perf_counter() + EVERY_LINE
            logger.info(f"{stage.name:<10} {_state(stage)}")


class _StageColumn(ProgressColumn):
    """Shows the state of the task's Stage."""

    def render(self, task: Task) -> Text:
        return Text(_state(task.fields["stage"]))


def _state(stage: Stage) -> str:
    """Return the units, rate, time left (or time taken at the end) and note; or the preparation."""
    if stage.preparing:
        return f"{stage.done}/{stage.total} {stage.unit}  {stage.preparing}"
    left = stage.remaining() if stage.done < stage.total else None
    parts = [f"{stage.done}/{stage.total} {stage.unit}", f"{stage.rate():.1f} {stage.unit}/s"]
    parts.append(clock(stage.elapsed()) if left is None else f"{clock(left)} left")
    return "  ".join([*parts, stage.text]).rstrip()


def _summary(stage: Stage, count: int, seconds: float, prepared: float) -> str:
    working = seconds - prepared
    rate = f"{count / max(working, 1e-9):.1f} {stage.unit}/s"
    left = stage.remaining() if stage.done < stage.total else None
    before = f"after {prepared:.1f} s of preparation" if prepared else ""
    parts = [f"{stage.name:<10} {count} {stage.unit} in {working:.1f} s", rate, before, stage.text]
    return ", ".join([*filter(None, parts), *([] if left is None else [f"{clock(left)} left"])])


def clock(seconds: float) -> str:
    """Return the time as `m:ss`, or as `h:mm:ss` from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rate(per_second: float) -> str:
    """Return a rate in short form, e.g. `0.3`, `42`, `1.2 k`."""
    value, unit = per_second, ""
    for larger in (" k", " M", " G"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.{1 if value < 9.95 else 0}f}{unit}"


def percent(share: float) -> str:
    """Return a share in percent, e.g. `54 %`."""
    return f"{100 * share:.0f} %"


def counted(count: int, one: str, many: str) -> str:
    """Return a count with its noun, e.g. `1 retry`, `1,200 retries`."""
    return f"{count:,} {one if count == 1 else many}"


def one_line(text: str) -> str:
    """Return the text without line breaks and other characters that control a terminal."""
    return " ".join("".join(it if it.isprintable() else " " for it in text).split())
