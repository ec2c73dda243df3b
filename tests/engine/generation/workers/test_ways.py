"""The bank is the same for every kind of worker, and if workers or the coordinator are killed."""

import itertools
import random
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from engine.bank.reader import BankReader
from engine.bank.verify import verify
from engine.generation.workers.fork_server import NAME
from tests.commands import Command
from tests.conftest import CHAOS_KILLS, CHAOS_SEED
from tests.engine.generation.workers.conftest import SHARDS
from tests.engine.generation.workers.generations import (
    Start,
    end,
    kill_at_random,
    made,
    same_bank,
    until_made,
    workers_of,
)

ALL = ("--shards", str(SHARDS))
RAY_KILLS = min(10, CHAOS_KILLS // 2)
"""A Ray worker takes seconds to import. If each is killed during that, Ray's raylet exits after the ninth."""
RAY_WORKERS = "4" if RAY_KILLS > 4 else "2"
OVERLAP = ("--compute.overlap", "true", "--threads", "2", "--shards", "6")
POOL, RAY = "worker ", "ray::RayWorker"
"""Substrings of the workers' names or command lines."""


def test_debug_lines_of_workers_come_through_their_loggers(start: Start, tmp_path: Path) -> None:
    out, _ = start(tmp_path, "--shards", "2", "--workers", "2", "--verbose").communicate(timeout=240)
    for number in (0, 1):
        assert f" engine.generation.workers.worker: shard 0000{number} made\n" in out
    assert out.count(" engine.networks: loading the teacher, ") == 1, "of two workers"
    assert re.search(r" engine\.generation\.workers\.coordinator: worker [12]: ready on ", out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(["--workers", "2"], id="pool"),
        pytest.param(["--workers", "2", "--ray", "local"], id="ray", marks=pytest.mark.ray),
    ],
)
def test_the_bank_is_the_same(way: list[str], start: Start, undisturbed: Path, tmp_path: Path) -> None:
    line, _ = end(start(tmp_path / "bank", *ALL, *way))
    assert line.startswith(f"{tmp_path / 'bank'}: {SHARDS} shards made, 0 already there; ")
    assert same_bank(tmp_path / "bank", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mark", "way", "kills", "pause"),
    [
        pytest.param(POOL, ["--workers", "2"], 10, 0.3, id="pool"),
        pytest.param(
            RAY, ["--workers", RAY_WORKERS, "--ray", "local"], RAY_KILLS, 1.0, id="ray", marks=pytest.mark.ray
        ),
    ],
)
def test_killed_workers_change_nothing(
    mark: str, way: list[str], kills: int, pause: float, start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    draw, tries = random.Random(CHAOS_SEED), itertools.count()
    while kills > 0:  # a bank may be complete before all kills
        out = tmp_path / str(next(tries))
        running = start(out, *ALL, *way, "--retries", "20")
        until_made(running, out, 1)
        kills -= kill_at_random(running, mark, kills, draw, longest_pause=pause)
        _, error = end(running)
        assert error == ""
        assert same_bank(out, undisturbed)


@pytest.mark.slow
def test_a_killed_coordinator_takes_its_workers_along(
    start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bank"
    running = start(out, *ALL, "--workers", "2")
    until_made(running, out, 2)
    below = psutil.Process(running.pid).children(recursive=True)
    assert sorted(process.name() for process in below) == [NAME, "worker 1", "worker 2"]
    running.kill()
    running.communicate()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive
    end(start(out, *ALL, "--workers", "1", "--resume"))
    assert same_bank(out, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("way", [["--workers", "1"], ["--workers", "2"]], ids=["here", "pool"])
def test_sigterm_drains_and_resume_makes_the_rest(
    way: list[str], start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bank"
    running = start(out, *ALL, *way)
    until_made(running, out, 2)
    running.send_signal(signal.SIGTERM)
    line, error = end(running, code=143, seconds=60)
    done = made(out)
    assert error == f"to continue, repeat the command with --out {out} --resume\nterminated\n"
    assert 2 <= done < SHARDS
    assert line.endswith(f"; {SHARDS - done} left, continue with --resume")
    assert (out / "README.md").exists()
    end(start(out, *ALL, *way, "--resume"))
    assert same_bank(out, undisturbed)


@pytest.mark.slow
def test_signals_start_and_dismiss_workers(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "bank"
    running = start(out, *ALL, "--workers", "2")
    until_made(running, out, 1)
    running.send_signal(signal.SIGTTOU)
    _until_workers(running, 1)
    running.send_signal(signal.SIGTTIN)
    _until_workers(running, 2)
    end(running)
    assert same_bank(out, undisturbed)


def _until_workers(running: Command, count: int) -> None:
    last = time.monotonic() + 30
    while len(workers_of(running, POOL)) != count:
        assert running.poll() is None, "the command ended before it changed its workers"
        assert time.monotonic() < last
        time.sleep(0.05)


@pytest.mark.slow
def test_workers_write_to_a_url(s3: str, start: Start, undisturbed: Path) -> None:
    url = f"{s3}/of-two-workers"
    end(start(url, "--shards", "6", "--workers", "2"))
    assert verify(url) == []
    expected = BankReader.open(str(undisturbed)).only(range(6))
    assert BankReader.open(url).images_sha256 == expected.images_sha256


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(["--workers", "2"], id="pool"),
        pytest.param(["--workers", "2", "--ray", "local"], id="ray", marks=pytest.mark.ray),
    ],
)
def test_workers_whose_shards_overlap_make_the_same_ones(
    way: list[str], overlapped: Path, start: Start, tmp_path: Path
) -> None:
    """Each worker has several shards under way at once."""
    end(start(tmp_path / "bank", *OVERLAP, *way))
    assert same_bank(tmp_path / "bank", overlapped)


@pytest.fixture(scope="module")
def overlapped(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank made by one worker in the command's process."""
    out = tmp_path_factory.mktemp("banks") / "overlapped"
    end(start(out, *OVERLAP, "--workers", "1"))
    return out
