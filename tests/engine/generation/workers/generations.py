"""`python -m engine.generate` in a process of its own, and what its workers suffer."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.commands import Command

Start = Callable[..., Command]
"""`start(out, *arguments)` is `python -m engine.generate` into `out`, with one thread a worker: the bytes do
not depend on the number of workers."""


def end(process: Command, *, code: int = 0, seconds: float = 240) -> tuple[str, str]:
    """The last line of stdout, and all of stderr; the exit code must be `code`."""
    out, error = process.communicate(timeout=seconds)
    assert process.returncode == code, (process.returncode, out[-1000:], error[-3000:])
    return out.strip().splitlines()[-1] if out.strip() else "", error


def made(out: Path) -> int:
    """Shards that are committed by now."""
    manifest = out / "manifest.json"
    return manifest.read_bytes().count(b'"stats/') if manifest.exists() else 0


def until_made(process: Command, out: Path, count: int, seconds: float = 120) -> None:
    """Waits until so many shards are committed."""
    last = time.monotonic() + seconds
    while made(out) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < last, f"{made(out)} of {count} shards after {seconds} s"
        time.sleep(0.02)


def workers_of(process: Command, mark: str) -> list[psutil.Process]:
    """Those processes below it whose name or command line has `mark` in it."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if mark in " ".join([child.name(), *child.cmdline()]):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_at_random(process: Command, mark: str, kills: int, draw: random.Random, longest_pause: float) -> int:
    """SIGKILL to a random worker after each random pause, while the process lives; how many were killed."""
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
    """Of all files that a bank's user sees."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def same_bank(one: Path, other: Path) -> bool:
    """Manifest, card and shards, byte for byte."""
    return contents(one) == contents(other)
