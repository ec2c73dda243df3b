"""The view: a table on a terminal, log lines elsewhere."""

import contextlib
import io
import logging
import re
import time

import pytest
from rich.console import Console

from engine.generation.messages import Event, Exited
from engine.generation.monitor import console
from engine.generation.monitor.console import View, render
from engine.generation.monitor.progress import GenerationStats, WorkerStats
from engine.terminal import on_console
from tests.engine.generation.monitor.example_stats import at_work, done


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The view's clock: one number that a test sets."""
    now = [1000.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_it_logs_news_at_most_every_ten_seconds(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stats = GenerationStats(target=3, found=0)
    shown = View(Console(file=io.StringIO()))
    for second in range(40):
        if second in (2, 15, 17):
            stats.take(Event("a", done(second)))
        clock[0] = 1000.0 + second
        before = len(caplog.messages)
        shown.update(stats)
        assert (len(caplog.messages) > before) == (second in (0, 10, 20)), second
    shown.close(stats)
    assert [line.split(",")[0] for line in caplog.messages] == [
        "0/3 shards",
        "1/3 shards",
        "3/3 shards",
        "3/3 shards",
    ]


def test_the_lines_say_what_matters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stats, shown = at_work(), View(Console(file=io.StringIO()))
    shown.update(stats)
    shown.close(stats)
    during, end = caplog.messages
    common = "7/10 shards, 2.4 images/s, kept 56 %, 1 retry, 1 worker lost, 1 shard failed"
    assert during == f"{common}, 1:40 left"
    assert end == f"{common}, stopped after 1:40"


def test_a_view_that_was_never_updated_says_nothing_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    View(Console(file=io.StringIO())).close(GenerationStats(target=1, found=0))
    assert caplog.messages == []


def _drawn(
    stats: GenerationStats, *, width: int = 120, height: int = 40, no_color: bool = False
) -> list[str]:
    console = Console(
        file=io.StringIO(),
        record=True,
        width=width,
        height=height,
        force_terminal=True,
        color_system="standard",
        no_color=no_color,
    )
    console.print(render(stats, time.monotonic(), height=height, ended=False))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_picture() -> None:
    lines = _drawn(at_work(draining=True))
    assert re.fullmatch(r"7/10 shards  [━╸╺]+  1:40 left", lines[0])
    assert lines[1:5] == [
        "2.4 images/s   kept 56 %   1 retry   1 worker lost   1 shard failed   draining",
        "2 x out of memory [b]",
        "1 x signal 9",
        "failed shards: 7",
    ]
    stages = [line[:46].split() for line in lines[7:9]]
    assert stages == [["synthesize", "24", "6.0", "25", "%"], ["augment", "216", "18", "75", "%"]]
    workers = [line[46:].split() for line in lines[7:9]]
    assert workers == [["a", "1", "1.2", "1.0", "GB"], ["b", "1", "1.2", "1.0", "GB", "lost"]]


def test_the_picture_without_colour_shows_what_is_left_as_nothing() -> None:
    lines = _drawn(at_work(draining=True), no_color=True)
    assert re.fullmatch(r"7/10 shards  ━+ +1:40 left", lines[0])
    assert lines[1:] == _drawn(at_work(draining=True))[1:]


def test_a_dismissed_worker_is_not_a_lost_one() -> None:
    stats = at_work()
    stats.take(Event("a", Exited()))
    workers = [line[46:].split() for line in _drawn(stats)[7:9]]
    assert [worker[-1] for worker in workers] == ["ended", "lost"]
    assert "   1 worker lost   " in _drawn(stats)[1]


def _many_workers(count: int) -> GenerationStats:
    stats = at_work()
    since = time.monotonic() - 10
    stats.workers = {
        f"w{number}": WorkerStats(since=since, shards=number, images=10 * number, rss=2 * 10**9)
        for number in range(count)
    }
    stats.errors.update({f"reason {number}": 1 for number in range(9)})
    stats.failed = dict.fromkeys(range(25), "no")
    return stats


def test_the_busiest_workers_and_one_line_for_the_rest() -> None:
    lines = _drawn(_many_workers(100))
    rows = [line[46:].split() for line in lines if re.search(r" w\d", line)]
    assert [row[0] for row in rows] == [f"w{number}" for number in range(99, 87, -1)]
    assert rows[0] == ["w99", "99", "99", "2.0", "GB"]
    (rest,) = [line.split() for line in lines if "88 more" in line]
    assert rest == ["88", "more", "3,828", "3.8", "k", "176.0", "GB"]
    assert "failed shards: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 15 more" in lines


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 24), (80, 60)])
def test_the_picture_fits_the_terminal(width: int, height: int) -> None:
    lines = _drawn(_many_workers(100), width=width, height=height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width


def test_on_a_terminal_it_draws_itself_and_lines_stand_above(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = _terminal()
    monkeypatch.setattr("engine.terminal.console", lambda: console)
    with on_console([]):
        stats, shown = at_work(), View(console)
        shown.update(stats)
        assert _until(console, "7/10 shards")
        logging.getLogger("engine.generation.workers").info("[worker a] a line")
        stats.take(Event("a", done(8)))
        shown.update(stats)
        assert _until(console, "8/10 shards")
        shown.close(stats)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert written.index("[worker a] a line") < written.index("8/10 shards")
    assert "stopped after 1:4" in written.replace("\x1b[0m", "")
    assert capsys.readouterr().out == ""


def test_nothing_is_drawn_if_the_log_is_not_shown() -> None:
    """For a library user, and with --quiet."""
    console = _terminal()
    for arguments in (None, ["--quiet"]):
        with contextlib.nullcontext() if arguments is None else on_console(arguments):
            stats, shown = at_work(), View(console)
            shown.update(stats)
            assert not _until(console, "7/10 shards", tries=3)
            shown.close(stats)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def _terminal() -> Console:
    return Console(
        file=io.StringIO(),
        width=100,
        height=40,
        force_terminal=True,
        markup=False,
        highlight=False,
        _environ={"TERM": "xterm"},
    )


def _until(console: Console, text: str, tries: int = 100) -> bool:
    """Return whether the drawing thread writes `text` within `tries` times 0.05 s."""
    for _ in range(tries):
        if text in console.file.getvalue():  # type: ignore[attr-defined]
            return True
        time.sleep(0.05)
    return False
