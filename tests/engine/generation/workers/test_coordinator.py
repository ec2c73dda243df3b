"""The coordinator with a scripted pool: failed shards, lost workers, and workers that cannot load."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from engine.bank.reader import BankReader
from engine.bank.writer import BankWriter, write_shard
from engine.errors import UserError
from engine.generation.messages import Done, Event, Exited, Failed, LoadFailed, Logged, Lost, Ready
from engine.generation.monitor.progress import GenerationStats
from engine.generation.workers import pool as pool_module
from engine.generation.workers import retry_queue
from engine.generation.workers.coordinator import Coordinator
from engine.generation.workers.pool import WorkerHandle, WorkerPool
from engine.generation.workers.retry_queue import ShardQueue
from engine.generation.workers.signals import Requests
from tests.engine.bank import tiny
from tests.log_lines import log_lines


class Scripted(WorkerHandle):
    def __init__(self, name: str) -> None:
        super().__init__(name, depth=2)

    def send(self, number: int) -> None:
        pass

    def dismiss(self) -> None:
        pass

    def kill(self) -> None:
        pass


class ScriptedPool(WorkerPool[Scripted]):
    """Writes real shards into a real folder, after the events that `script` has for a shard or a worker.

    The worker `broken` fails every shard.
    """

    def __init__(self, url: str, capacity: int, script: dict[Any, list[Any]], broken: str) -> None:
        super().__init__()
        self.url, self._capacity, self.script, self.broken = url, capacity, script, broken
        self.given: list[tuple[str, int]] = []

    @property
    def capacity(self) -> int:
        return self._capacity

    def start(self, name: str) -> Scripted:
        return Scripted(name)

    def give(self, worker: Scripted, number: int, *, alone: bool = False) -> None:
        self.given.append((worker.name, number))
        super().give(worker, number, alone=alone)

    def collect(self, seconds: float) -> Iterable[tuple[Scripted, Event]]:  # noqa: ARG002
        for worker in list(self.workers):
            for what in self._of(worker):
                yield worker, Event(worker.name, what)

    def _of(self, worker: Scripted) -> list[Any]:
        if not worker.ready:
            return [self.script.get(worker.name, [Ready("here", 1.0)]).pop(0)]
        if not worker.under_way:
            return [Exited()] if worker.leaving else []
        number = worker.under_way[0]
        if worker.name == self.broken:
            return [failure(number)]
        if self.script.get(number):
            what = self.script[number].pop(0)
            return [Lost(tuple(worker.under_way), what) if isinstance(what, str) else what]
        rows, images = tiny.shard(number)
        entry = write_shard(self.url, number, rows, images, tiny.header())
        counts: dict[str, Any] = {"variations": 8, "accepted": 4, "seconds": {}, "images": {}, "rss": 1}
        return [Done(number=number, entry=entry, **counts)]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_queue, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(pool_module, "LONGEST_PAUSE", 0.0)


def failure(number: int, *, final: bool = False) -> Failed:
    return Failed(number=number, reason="disk full", final=final, trace="")


def run(
    folder: Path,
    script: dict[Any, list[Any]],
    *,
    shards: int = 4,
    retries: int = 2,
    capacity: int = 2,
    broken: str = "",
) -> tuple[GenerationStats, ScriptedPool, list[str]]:
    stats = GenerationStats(target=shards, found=0)
    with log_lines() as lines, ScriptedPool(str(folder), capacity, script, broken) as workers:
        coordinator = Coordinator(workers, stats, Requests(), observers=[])
        with BankWriter.open(str(folder), tiny.header(), resume=False) as bank:
            coordinator.run(bank, ShardQueue(range(shards), retries))
    return stats, workers, lines


def test_all_shards_are_committed_and_idle_workers_are_dismissed(tmp_path: Path) -> None:
    stats, workers, _ = run(tmp_path, {}, shards=10, capacity=3)
    assert BankReader.open(str(tmp_path)).numbers == list(range(10))
    assert (stats.made, stats.left, stats.accepted, stats.failed) == (10, 0, 40, {})
    assert [worker.alive for worker in stats.workers.values()].count(True) == 1
    assert {worker for worker, _ in workers.given} == {"worker 1", "worker 2", "worker 3"}


def test_shards_that_fail_are_tried_again_and_counted(tmp_path: Path) -> None:
    stats, _, _ = run(tmp_path, {1: [failure(1), failure(1)]})
    assert (stats.made, stats.retries, stats.errors["disk full"], stats.failed) == (4, 2, 2, {})


def test_shards_that_keep_failing_are_given_up_and_the_others_are_made(tmp_path: Path) -> None:
    stats, _, lines = run(tmp_path, {1: [failure(1)] * 3, 2: [failure(2, final=True)]})
    assert stats.failed == {1: "disk full", 2: "disk full"}
    assert (stats.made, stats.retries, stats.left) == (2, 2, 0)
    assert lines == ["shard 00002 failed (disk full), giving up", "shard 00001 failed (disk full), giving up"]
    assert BankReader.open(str(tmp_path)).numbers == [0, 3]


def test_shards_of_a_lost_worker_go_to_others_and_the_worker_is_replaced(tmp_path: Path) -> None:
    stats, workers, lines = run(tmp_path, {0: ["killed by SIGKILL"]}, shards=8)
    assert (stats.made, stats.workers_lost) == (8, 1)
    assert not stats.workers["worker 1"].alive
    assert lines == ["worker 1: killed by SIGKILL"]
    assert "worker 3" in {worker for worker, _ in workers.given}


def test_a_shard_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    stats, _, _ = run(tmp_path, {0: ["killed by SIGKILL"] * 9}, retries=3, shards=1, capacity=1)
    assert stats.failed == {0: "killed by SIGKILL"}
    assert (stats.workers_lost, stats.retries) == (4, 3)


def test_what_a_worker_logs_is_logged_by_the_logger_of_that_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    building = Logged(logger="export.store", level=logging.WARNING, text="unet: building 100%")
    run(tmp_path, {"worker 1": [building, Ready("here", 1.0)]})
    assert caplog.record_tuples == [("export.store", logging.WARNING, "unet: building 100%")]


def test_if_no_worker_can_load_the_generation_ends_with_that_error(tmp_path: Path) -> None:
    script = {f"worker {number}": [LoadFailed("teacher.weights is damaged")] for number in (1, 2)}
    with pytest.raises(UserError, match=r"^teacher.weights is damaged$"):
        run(tmp_path, script)


@pytest.mark.parametrize("first", ["worker 1", "worker 2"])
def test_workers_that_cannot_load_are_logged_and_the_others_continue(first: str, tmp_path: Path) -> None:
    """Whichever worker fails first; its replacements cannot load either, as on a node that lacks a file."""
    script = {f"worker {number}": [LoadFailed("no such file")] for number in range(3, 99)}
    script[first] = [LoadFailed("no such file")]
    stats, _, lines = run(tmp_path, script, shards=30)
    assert (stats.made, stats.failed) == (30, {})
    assert lines[0] == f"{first}: no such file"


def test_a_worker_that_fails_every_shard_is_replaced(tmp_path: Path) -> None:
    stats, _, _ = run(tmp_path, {}, shards=40, broken="worker 1")
    assert (stats.made, stats.failed) == (40, {})
    assert stats.workers["worker 1"].shards == 0
    assert not stats.workers["worker 1"].alive


def test_a_shard_that_kills_its_workers_takes_no_other_along(tmp_path: Path) -> None:
    """The worker has two shards under way when it dies the first time."""
    stats, _, _ = run(tmp_path, {0: ["killed by SIGKILL"] * 9}, retries=3, shards=6, capacity=1)
    assert stats.failed == {0: "killed by SIGKILL"}
    assert stats.made == 5


def test_workers_that_die_while_they_load_end_it_after_three(tmp_path: Path) -> None:
    script = {f"worker {number}": [Lost((), "killed by SIGKILL")] for number in range(1, 9)}
    with pytest.raises(UserError, match=r"^3 workers in a row died while loading .*killed by SIGKILL"):
        run(tmp_path, script, capacity=1)


def test_missing_files_of_a_finished_shard_point_to_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    entry = write_shard(str(tmp_path / "elsewhere"), 0, *tiny.shard(0), tiny.header())
    with (
        BankWriter.open(str(tmp_path / "bank"), tiny.header(), resume=False) as bank,
        pytest.raises(UserError, match=r"00000.tar is missing .*give all machines one shared folder"),
    ):
        bank.commit_entries({0: entry})
