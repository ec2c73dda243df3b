"""The status file: its content, how often it is written, and that the bank stays valid."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from engine.bank.manifest import STATUS, is_part
from engine.bank.reader import BankReader
from engine.bank.storage import open_storage
from engine.bank.verify import verify
from engine.bank.writer import require_new
from engine.generation.monitor import status_file
from engine.generation.monitor.progress import GenerationStats
from engine.generation.monitor.status_file import Record, StatusFile
from tests.engine.bank import tiny
from tests.engine.generation.monitor.example_stats import at_work


def test_what_is_written(tmp_path: Path) -> None:
    stats = at_work()
    StatusFile(open_storage(str(tmp_path))).update(stats)
    read = json.loads((tmp_path / STATUS).read_bytes())
    assert read.pop("updated") == pytest.approx(time.time(), abs=10)
    assert read.pop("started") == pytest.approx(time.time() - 100, abs=10)
    assert read.pop("images_per_second") == pytest.approx(2.4, rel=0.1)
    assert read.pop("remaining_seconds") == pytest.approx(100, rel=0.1)
    workers = read.pop("workers")
    assert [worker.pop("images_per_second") for worker in workers.values()] == pytest.approx(
        [1.2, 1.2], rel=0.1
    )
    one = {"host": "here", "shards": 1, "images": 120, "rss_bytes": 10**9}
    assert workers == {"a": one | {"alive": True}, "b": one | {"alive": False}}
    assert read == {
        "state": "running",
        "target": 10,
        "found": 5,
        "made": 2,
        "failed": {"7": "out of memory [b]"},
        "errors": {"out of memory [b]": 2, "signal 9": 1},
        "rows": 240,
        "images": 144,
        "acceptance": 120 / 216,
        "retries": 1,
        "workers_alive": 1,
        "workers_lost": 1,
        "stages": {
            "synthesize": {"images": 24, "seconds": 4.0, "images_per_second": 6.0},
            "augment": {"images": 216, "seconds": 12.0, "images_per_second": 18.0},
        },
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "warning": None,
    }


ENDS = [
    ({}, "stopped"),
    ({"draining": True}, "stopped"),
    ({"target": 8}, "failed shards"),
    ({"target": 7, "failed": {}}, "done"),
]


@pytest.mark.parametrize(("changes", "state"), ENDS)
def test_the_state_at_the_end(changes: dict, state: str, tmp_path: Path) -> None:
    file, stats = StatusFile(open_storage(str(tmp_path))), at_work(**changes)
    file.update(stats)
    during = Record.from_json((tmp_path / STATUS).read_bytes())
    assert during.state == ("draining" if stats.draining else "running")
    file.close(stats)
    assert Record.from_json((tmp_path / STATUS).read_bytes()).state == state


def test_it_is_written_every_five_seconds_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(status_file, "monotonic", lambda: now)
    file, stats = StatusFile(open_storage(str(tmp_path))), GenerationStats(target=9, found=0)
    seen = []
    for second in range(12):
        now, stats.found = 100.0 + second, second
        file.update(stats)
        seen.append(json.loads((tmp_path / STATUS).read_bytes())["found"])
    file.close(stats)
    assert seen == [0] * 5 + [5] * 5 + [10] * 2
    assert json.loads((tmp_path / STATUS).read_bytes())["found"] == 11


def test_without_an_update_the_bank_is_not_touched(tmp_path: Path) -> None:
    StatusFile(open_storage(str(tmp_path / "bank"))).close(GenerationStats(target=1, found=0))
    assert not (tmp_path / "bank").exists()


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "bank") if request.param == "folder" else request.getfixturevalue("memory_url")


def test_the_bank_is_as_sound_with_it(url: str) -> None:
    StatusFile(open_storage(url)).update(at_work())
    require_new(url)
    tiny.write(url)
    StatusFile(open_storage(url)).update(at_work())
    assert STATUS in open_storage(url).names()
    assert verify(url) == []
    assert BankReader.open(url).numbers == [0, 1, 2]
    assert tiny.write(url, range(4), resume=True) == []
    assert STATUS in open_storage(url).names()


def test_what_a_killed_writer_left_of_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path)
    written: list[Path] = []

    def killed(path: Path, data: bytes) -> int:
        written.append(path)
        return len(data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", killed)
        with pytest.raises(FileNotFoundError):
            StatusFile(open_storage(str(tmp_path))).update(at_work())
    assert is_part(written[0].name)
    written[0].touch()
    tiny.write(tmp_path, resume=True)
    assert not written[0].exists()


DAMAGED = [
    b"",
    b"[]",
    b"{}",
    b'{"state": "running"}',
    b"\xff",
]


@pytest.mark.parametrize("data", DAMAGED)
def test_what_is_no_status_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Record.from_json(data)


@pytest.mark.parametrize("value", ['"12"', "true", "null", "NaN", "Infinity", "[]"])
@pytest.mark.parametrize("name", ["made", "updated", "host", "failed"])
def test_a_status_with_a_value_of_another_kind_is_refused(name: str, value: str) -> None:
    document = json.loads(Record.of(at_work(), ended=False).to_json())
    text = json.dumps(document | {name: "HERE"}).replace('"HERE"', value)
    if (name, value) == ("host", '"12"'):
        assert Record.from_json(text.encode()).host == "12"
        return
    with pytest.raises(ValueError, match=name):
        Record.from_json(text.encode())


def test_patience_is_three_shards_of_a_worker_and_at_least_a_minute() -> None:
    def patience(made: int, seconds: float, workers: int) -> float:
        fields = json.loads(Record.of(at_work(made=made), ended=False).to_json())
        changes = {"started": 0.0, "updated": seconds, "workers_alive": workers}
        return Record(**(fields | changes)).patience

    assert patience(0, 300, 4) == 600
    assert patience(10, 300, 1) == 90
    assert patience(10, 300, 4) == 360
    assert patience(1000, 300, 4) == 60
    assert patience(1, 50, 0) == 150
