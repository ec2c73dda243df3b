"""`--status` of a bank with a recent status file, an old one, a damaged one, and none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.bank.manifest import STATUS
from engine.bank.storage import open_storage
from engine.bank.writer import BankWriter
from engine.errors import UserError
from engine.generation.monitor.status import status
from engine.generation.monitor.status_file import Record
from tests.engine.bank import tiny
from tests.engine.generation.monitor.example_stats import at_work


def _leave(url: str, *, ended: bool = False, age: float = 0.0, **changes: Any) -> Record:
    fields = json.loads(Record.of(at_work(), ended=ended).to_json())
    aged = {"updated": fields["updated"] - age, "started": fields["started"] - age}
    record = Record(**(fields | aged | {"host": "node", "pid": 42} | changes))
    open_storage(url).write(STATUS, record.to_json())
    return record


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = str(tmp_path / "bank") if request.param == "folder" else request.getfixturevalue("memory_url")
    tiny.write(url)
    return url


def test_a_bank_without_a_status(url: str) -> None:
    counts, writer, title, *classes = status(url).splitlines()
    rows = [tiny.shard(number)[0] for number in range(3)]
    kept = sum(int(it.kept.sum()) for it in rows)
    share = sum(int(it.kept[4:].sum()) for it in rows) / sum(len(it) - 4 for it in rows)
    assert counts == (
        f"{url}: 3 shards committed; 36 images made, {kept} kept; {100 * share:.0f} % of the variations kept"
    )
    assert writer == "there is no .status.json, so nothing is known about the writer"
    assert title == "kept images by class (all 3 classes have images)"
    by_class = [sum(int((it.labels[it.kept] == label).sum()) for it in rows) for label in range(3)]
    assert [(line.split()[0], int(line.split()[1])) for line in classes] == list(
        zip(tiny.CLASSES, by_class, strict=True)
    )


def test_a_writer_at_work(url: str) -> None:
    _leave(url, age=7)
    counts, writer, failed, *_ = status(url).splitlines()
    assert counts.startswith(f"{url}: 3 of 10 shards committed; ")
    assert writer == (
        "running for 1:40, 1 worker, 2.4 images/s, 1:33 left, 1 retry, 1 lost"
        " (process 42 on node, last update 0:07 ago)"
    )
    assert failed == "failed shard 7: out of memory [b]"


def test_a_status_that_is_too_old_is_not_believed(url: str) -> None:
    record = _leave(url)
    for age, believed in ((record.patience - 5, True), (record.patience + 5, False)):
        _leave(url, age=age)
        writer = status(url).splitlines()[1]
        assert writer.startswith("running") == believed
        assert ("no update for 2:35" in writer) != believed
        assert ("images/s" in writer) == believed


def test_a_writer_that_has_ended(url: str) -> None:
    _leave(url, ended=True, age=7200)
    assert status(url).splitlines()[1] == "stopped since 2:00:00, after 1:40 (process 42 on node)"


def test_shards_that_failed_and_were_made_later_are_not_named(url: str) -> None:
    _leave(url, failed={"2": "made since", "5": "still\nopen"})
    assert _failed(url) == ["failed shard 5: still open"]


def _failed(url: str) -> list[str]:
    return [line for line in status(url).splitlines()[1:] if "failed shard" in line]


def test_many_failed_shards_are_cut_short(url: str) -> None:
    _leave(url, failed={str(number): "no" for number in range(100, 200)})
    lines = _failed(url)
    assert lines[0] == "failed shard 100: no"
    assert lines[10:] == ["and 90 failed shards more"]


def test_a_writer_whose_clock_is_ahead(url: str) -> None:
    _leave(url, age=-50)
    assert "last update 0:00 ago" in status(url)


@pytest.mark.parametrize("data", [b"not json", b"{}", b'{"state": 1}'])
def test_a_status_that_is_damaged(data: bytes, url: str) -> None:
    open_storage(url).write(STATUS, data)
    counts, writer, *_ = status(url).splitlines()
    assert "3 shards committed" in counts
    assert writer.startswith(".status.json is damaged (")


def test_a_bank_that_is_being_written(tmp_path: Path) -> None:
    url = str(tmp_path)
    with BankWriter.open(url, tiny.header(), resume=False) as writer:
        assert "0 shards committed; 0 images made, 0 kept\n" in status(url)
        writer.commit(0, *tiny.shard(0))
        assert "1 shard committed; 12 images made" in status(url)


def test_a_bank_that_is_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere has no manifest.json, so it is not a bank"):
        status(str(tmp_path / "nowhere"))
    tiny.write(tmp_path)
    for damage in (lambda path: path.write_text("{}"), Path.unlink):
        damage(tmp_path / "stats/00001.json")
        with pytest.raises(UserError, match=r"missing or damaged .*engine\.bank verify"):
            status(str(tmp_path))


def test_a_thousand_classes_are_the_ten_with_the_most_and_the_fewest(tmp_path: Path) -> None:
    names = tuple(f"class {number}\x1b[2J" for number in range(1000))
    with BankWriter.open(str(tmp_path), tiny.header(class_names=names), resume=False) as writer:
        writer.commit(0, *tiny.shard(0))
    (title,) = [line for line in status(str(tmp_path)).splitlines() if "by class" in line]
    assert title == (
        "kept images by class (warning: 997 of 1,000 classes have no images):"
        " the 10 with the most and the fewest of 1,000"
    )
    lines = status(str(tmp_path)).splitlines()[3:]
    counts = [int(line.split("[2J")[1].split()[0]) for line in lines]
    assert len(counts) == 20
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == int(tiny.shard(0)[0].kept.sum())
    assert "\x1b" not in status(str(tmp_path))


def test_it_answers_without_torch_in_less_than_two_seconds(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    program = """
import sys
from engine.generation.monitor.status import status
print(status(sys.argv[1]))
print("torch" in sys.modules)
"""
    before = os.times()
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.splitlines()[-1] == "False"
    after = os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    assert used < 2, "CPU seconds, which do not depend on other work on the machine"


def test_a_warning_of_the_writer_is_repeated(url: str) -> None:
    _leave(url)
    assert "warning: " not in status(url)
    _leave(url, warning="chance is 10.0%")
    assert "warning: chance is 10.0%" in status(url).splitlines()
