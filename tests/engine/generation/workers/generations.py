"""Run `python -m engine.generate` in a process of its own, and kill its workers."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.commands import Command

Start = Callable[..., Command]
"""`start(out, *arguments)` runs `python -m engine.generate` into `out` with one thread per worker, so that
the bytes do not depend on the number of workers."""


def end(process: Command, *, code: int = 0, seconds: float = 240) -> tuple[str, str]:
    """Wait for the process and assert its exit code; return the last line of stdout, and all of stderr."""
    out, error = process.communicate(timeout=seconds)
    assert process.returncode == code, (process.returncode, out[-1000:], error[-3000:])
    return out.strip().splitlines()[-1] if out.strip() else "", error


def made(out: Path) -> int:
    """Return the number of committed shards."""
    manifest = out / "manifest.json"
    return manifest.read_bytes().count(b'"stats/') if manifest.exists() else 0


def until_made(process: Command, out: Path, count: int, seconds: float = 120) -> None:
    """Wait until `count` shards are committed."""
    last = time.monotonic() + seconds
    while made(out) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < last, f"{made(out)} of {count} shards after {seconds} s"
        time.sleep(0.02)


def workers_of(process: Command, mark: str) -> list[psutil.Process]:
    """Return the descendants whose name or command line contains `mark`."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if mark in " ".join([child.name(), *child.cmdline()]):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_at_random(process: Command, mark: str, kills: int, draw: random.Random, longest_pause: float) -> int:
    """Kill a random worker after each random pause while the process runs; return how many were killed."""
    killed: set[int] = set()
    while len(killed) < kills and process.poll() is None:
        time.sleep(draw.uniform(0.1, longest_pause))
        alive = [worker for worker in workers_of(process, mark) if worker.pid not in killed]
        if alive:
            victim = draw.choice(alive)
            victim.kill()
            killed.add(victim.pid)
    return len(killed)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a bank except hidden ones."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def same_bank(one: Path, other: Path) -> bool:
    """Return whether manifest, card and shards are equal, byte for byte."""
    return contents(one) == contents(other)
