"""However shards are made, and whoever dies meanwhile, the bank is the same."""

import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from engine.bank.reader import BankReader
from engine.bank.verify import verify
from engine.workers.fork_server import NAME
from tests.engine.workers.conftest import SHARDS
from tests.engine.workers.generations import (
    end,
    kill_at_random,
    made,
    same_bank,
    start,
    until_made,
    workers_of,
)

ALL = ("--shards", str(SHARDS))
POOL, RAY = "worker ", "ray::RayWorker"
"""Marks of the workers' names or command lines."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", [["--workers", "2"], ["--workers", "2", "--ray", "local"]], ids=["pool", "ray"]
)
def test_the_bank_is_the_same(way: list[str], recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    line, _ = end(start(recipe, tmp_path / "bank", *ALL, *way))
    assert line.startswith(f"{tmp_path / 'bank'}: {SHARDS} shards made, 0 found sound; ")
    assert same_bank(tmp_path / "bank", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mark", "way", "pause"),
    [(POOL, ["--workers", "2"], 0.5), (RAY, ["--workers", "4", "--ray", "local"], 1.0)],
    ids=["pool", "ray"],
)
def test_ten_killed_workers_change_nothing(
    mark: str, way: list[str], pause: float, recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bank"
    running = start(recipe, out, *ALL, *way, "--retries", "20")
    until_made(running, out, 1)
    assert kill_at_random(running, mark, 10, random.Random(0), longest_pause=pause) == 10
    assert made(out) < SHARDS
    _, error = end(running)
    assert error == ""
    assert same_bank(out, undisturbed)


@pytest.mark.slow
def test_a_killed_coordinator_takes_its_workers_along(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bank"
    running = start(recipe, out, *ALL, "--workers", "2")
    until_made(running, out, 2)
    below = psutil.Process(running.pid).children(recursive=True)
    assert sorted(process.name() for process in below) == [NAME, "worker 1", "worker 2"]
    running.kill()
    running.communicate()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive
    end(start(recipe, out, *ALL, "--workers", "1", "--resume"))
    assert same_bank(out, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("way", [["--workers", "1"], ["--workers", "2"]], ids=["here", "pool"])
def test_sigterm_drains_and_resume_makes_the_rest(
    way: list[str], recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bank"
    running = start(recipe, out, *ALL, *way)
    until_made(running, out, 2)
    running.send_signal(signal.SIGTERM)
    line, error = end(running, seconds=60)
    done = made(out)
    assert error == ""
    assert 2 <= done < SHARDS
    assert line.endswith(f"; {SHARDS - done} are left, --resume makes them")
    assert (out / "README.md").exists()
    end(start(recipe, out, *ALL, *way, "--resume"))
    assert same_bank(out, undisturbed)


@pytest.mark.slow
def test_signals_start_and_dismiss_workers(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "bank"
    running = start(recipe, out, *ALL, "--workers", "2")
    until_made(running, out, 1)
    running.send_signal(signal.SIGTTOU)
    _until_workers(running, 1)
    running.send_signal(signal.SIGTTIN)
    _until_workers(running, 2)
    end(running)
    assert same_bank(out, undisturbed)


def _until_workers(running: "subprocess.Popen[str]", count: int) -> None:
    last = time.monotonic() + 30
    while len(workers_of(running, POOL)) != count:
        assert running.poll() is None, "it ended before it followed"
        assert time.monotonic() < last
        time.sleep(0.05)


@pytest.mark.slow
def test_workers_write_to_a_url(s3: str, recipe: Path, undisturbed: Path) -> None:
    url = f"{s3}/of-two-workers"
    end(start(recipe, url, "--shards", "6", "--workers", "2"))
    assert verify(url) == []
    expected = BankReader.open(str(undisturbed)).only(range(6))
    assert BankReader.open(url).images_sha256 == expected.images_sha256


@pytest.mark.slow
def test_workers_whose_shards_overlap_make_the_same_ones(recipe: Path, tmp_path: Path) -> None:
    """Several shards are under way in each worker at once."""
    ways = {"here": ["1"], "pool": ["2"], "ray": ["2", "--ray", "local"]}
    for name, way in ways.items():
        overlap = ["--compute.overlap", "true", "--threads", "2", "--shards", "8", "--workers", *way]
        end(start(recipe, tmp_path / name, *overlap))
    assert same_bank(tmp_path / "pool", tmp_path / "here")
    assert same_bank(tmp_path / "ray", tmp_path / "here")
