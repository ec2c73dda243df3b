"""Opening and closing observers; errors of an observer do not end a generation."""

import errno
import logging
from inspect import signature
from multiprocessing.connection import Listener
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from jsonargparse import ArgumentParser

from engine.bank.manifest import STATUS
from engine.bank.storage import LocalStorage
from engine.errors import UserError
from engine.generation.monitor.console import View
from engine.generation.monitor.open import LOOPBACK, GuardedObserver, add_monitor_flags, open_observers
from engine.generation.monitor.progress import GenerationStats
from engine.generation.monitor.status_file import Record
from tests.engine.bank import tiny
from tests.engine.generation.monitor.example_stats import at_work


def test_all_are_closed_with_the_final_statistics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stats = at_work()
    with open_observers(stats, str(tmp_path), View()) as observers:
        for observer in observers:
            observer.update(stats)
        stats.target, stats.failed = 7, {}
    assert Record.from_json((tmp_path / STATUS).read_bytes()).state == "done"
    assert [", done in" in line for line in caplog.messages] == [False, True]


def test_an_exception_leaves_the_bank_as_stopped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stats = at_work()

    def generate() -> None:
        with open_observers(stats, str(tmp_path), View()) as observers:
            for observer in observers:
                observer.update(stats)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        generate()
    assert Record.from_json((tmp_path / STATUS).read_bytes()).state == "stopped"
    assert ", stopped after" in caplog.text


def test_a_bank_that_is_not_ours_keeps_its_writers_status(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An error before the first update, such as a bank that another process writes."""
    caplog.set_level(logging.INFO)
    (tmp_path / STATUS).write_text("another's")
    with pytest.raises(UserError), open_observers(GenerationStats(target=1, found=0), str(tmp_path), View()):
        raise UserError("in use")
    assert (tmp_path / STATUS).read_text() == "another's"
    assert caplog.messages == []


def test_failing_writes_are_logged_once_and_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tiny.write(tmp_path)
    full = True
    write = LocalStorage.write

    def failing(self: LocalStorage, name: str, data: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", name)
        write(self, name, data)

    monkeypatch.setattr(LocalStorage, "write", failing)
    monkeypatch.setattr("engine.generation.monitor.status_file.INTERVAL", 0.0)
    stats = at_work()
    with open_observers(stats, str(tmp_path), View()) as observers:
        for _ in range(3):
            for observer in observers:
                observer.update(stats)
        assert not (tmp_path / STATUS).exists()
        full = False
    assert (tmp_path / STATUS).exists()
    logged = [line for line in caplog.messages if "No space" in line]
    assert logged == [
        "the bank's status: OSError: [Errno 28] No space left on device: '.status.json';"
        " the generation continues"
    ]


def test_after_a_failing_write_the_next_try_is_five_seconds_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def failing(self: LocalStorage, name: str, data: bytes) -> None:  # noqa: ARG001
        tries.append(name)
        raise OSError

    now = 50.0
    monkeypatch.setattr(LocalStorage, "write", failing)
    monkeypatch.setattr("engine.generation.monitor.status_file.monotonic", lambda: now)
    stats = at_work()
    with open_observers(stats, str(tmp_path), View()) as observers:
        for second in range(11):
            now = 50.0 + second
            observers[0].update(stats)
        assert len(tries) == 3


class Broken:
    def update(self, stats: GenerationStats) -> None:
        raise RuntimeError(f"update {stats.target}")

    def close(self, stats: GenerationStats) -> None:
        raise RuntimeError(f"close {stats.target}")


def test_the_first_failure_of_an_observer_is_logged_and_none_is_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    guarded = GuardedObserver(Broken(), "broken")
    guarded.update(at_work())
    guarded.update(at_work())
    guarded.close(at_work())
    assert caplog.messages == ["broken: RuntimeError: update 10; the generation continues"]


def test_everything_at_once_and_the_port_is_free_afterwards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stats, events = at_work(), tmp_path / "events"
    with open_observers(
        stats, str(tmp_path / "bank"), View(), metrics_port=0, tensorboard=str(events)
    ) as observers:
        for observer in observers:
            observer.update(stats)
        url = caplog.messages[0].removeprefix("metrics: ")
        with urlopen(url, timeout=10) as answer:
            assert b"dda_shards_committed_total 2.0" in answer.read()
    with pytest.raises(URLError, match="refused"):
        urlopen(url, timeout=10)
    assert list(events.iterdir())


def test_a_port_in_use_leaves_no_bank(tmp_path: Path) -> None:
    with Listener(("127.0.0.1", 0)) as taken:
        port = taken.address[1]
        with (
            pytest.raises(UserError, match=f"--metrics-port {port}"),
            open_observers(
                GenerationStats(target=1, found=0), str(tmp_path / "bank"), View(), metrics_port=port
            ),
        ):
            pass
    assert not (tmp_path / "bank").exists()


def test_the_flags_are_what_open_observers_takes() -> None:
    parser = ArgumentParser(exit_on_error=False)
    add_monitor_flags(parser)
    given = vars(parser.parse_args(["--metrics-port", "0", "--wandb", "project"]))
    assert given == {"metrics_port": 0, "metrics_host": LOOPBACK, "tensorboard": None, "wandb": "project"}
    assert set(given) < set(signature(open_observers).parameters)
