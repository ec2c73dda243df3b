"""What progress counts, and what it logs without a terminal."""

import logging

import pytest

from engine.progress import Progress, clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the clock's seconds, in a list that the test changes."""
    seconds = [100.0]
    monkeypatch.setattr("engine.progress.time.perf_counter", lambda: seconds[0])
    return seconds


def test_counts_and_seconds_add_up_over_entries(now: list[float]) -> None:
    with Progress(quiet=True) as progress:
        for _ in range(2):
            with progress.stage("augment", total=5, unit="images") as stage:
                stage.advance(2)
                stage.advance(3)
                now[0] += 2.5
        with progress.stage("distill", total=1, unit="steps") as stage:
            stage.advance()
    assert progress.counts == {"augment": 10, "distill": 1}
    assert progress.seconds == {"augment": 5.0, "distill": 0.0}


def test_a_failing_stage_is_still_counted() -> None:
    progress = Progress(quiet=True)

    def fail() -> None:
        with progress, progress.stage("filter", total=5, unit="images") as stage:
            stage.advance(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert progress.counts == {"filter": 3}
    assert progress.seconds["filter"] > 0


def test_values_of_an_earlier_process_are_continued() -> None:
    progress = Progress(quiet=True)
    progress.seconds["augment"], progress.counts["augment"] = 10.0, 100
    with progress, progress.stage("augment", total=2, unit="images") as stage:
        stage.advance(2)
    assert progress.counts["augment"] == 102
    assert progress.seconds["augment"] > 10


def test_without_a_terminal_each_stage_logs_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress() as progress, progress.stage("augment", total=4, unit="images") as stage:
        stage.advance(4)
        stage.note("kept 71 %")
    (line,) = caplog.messages
    assert line.startswith("augment    4 images in ")
    assert line.endswith(" images/s, kept 71 %")


def test_without_a_terminal_a_long_stage_says_how_far_it_is(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Progress() as progress, progress.stage("augment", total=40, unit="images") as stage:
        for _ in range(40):
            now[0] += 1.0
            stage.advance()
        lines = list(caplog.messages)
    assert lines == [
        "augment    3/40 images  1.0 images/s  0:37 left",
        "augment    33/40 images  1.0 images/s  0:07 left",
    ]


def test_an_announced_stage_counts_down_the_whole_run(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress() as progress:
        progress.announce("augment", total=6, unit="images")
        for _ in range(4):
            with progress.stage("augment", total=2, unit="images") as stage:
                stage.advance(2)
                left = stage.remaining()
    assert (stage.total, left) == (8, 0)
    assert [line.endswith(" left") for line in caplog.messages] == [True, True, False, False]


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress(quiet=True) as progress, progress.stage("augment", total=1, unit="images") as stage:
        stage.advance()
    assert capsys.readouterr().out == ""
    assert caplog.messages == []


def test_rate_and_remaining_time(now: list[float]) -> None:
    with Progress(quiet=True) as progress, progress.stage("augment", total=10, unit="images") as stage:
        assert stage.remaining() is None
        now[0] += 2.0
        stage.advance(4)
        assert (stage.rate(), stage.remaining()) == (2.0, 3.0)


def test_a_preparation_is_shown_and_counts_neither_for_the_rate_nor_for_the_time_left(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Progress() as progress, progress.stage("synthesize", total=8, unit="images") as stage:
        with stage.preparation("warming up") as show:
            for step in range(1, 5):
                now[0] += 20.0
                show(step / 4)
        now[0] += 2.0
        stage.advance(4)
        assert (stage.rate(), stage.remaining(), stage.elapsed()) == (2.0, 2.0, 82.0)
    assert progress.seconds == {"synthesize": 82.0}
    assert caplog.messages == [
        "synthesize 0/8 images  warming up: 25 %",
        "synthesize 0/8 images  warming up: 75 %",
        "synthesize 4 images in 2.0 s, 2.0 images/s, after 80.0 s of preparation, 0:02 left",
    ]


CLOCK = [(0.2, "0:00"), (59.7, "1:00"), (75, "1:15"), (3700, "1:01:40")]


@pytest.mark.parametrize(("seconds", "text"), CLOCK)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
