"""Measure images per second, from files to torch tensors."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import kernels
from bench.feed.loaders import BATCH, THREADS, fed, from_files, from_webdataset, opened
from bench.feed.workload import WORKLOADS, Workload, write_workload
from bench.machine import describe
from bench.rows import Row, commit

UNTIMED, TIMED = 1.0, 2.0
"""Seconds of a turn. In the untimed part, a loader uses up its prefetched batches, and the others idle."""

TURNS = 5


def rows() -> Iterator[Row]:
    """Yield for each workload: our DALI and torch feeds against files, and DALI against its own reader."""
    for work in WORKLOADS:
        with TemporaryDirectory() as folder:
            yield from _compared(work, _images_per_second(work, Path(folder)))


def _images_per_second(work: Workload, folder: Path) -> dict[str, float]:
    stored = write_workload(work, folder)
    kernels.retain_freed_memory()  # like a run on a CPU
    with opened(work, stored, "torch") as by_torch, opened(work, stored, "dali") as by_dali:
        loaders: dict[str, Iterator[object]] = {
            "files": from_files(work, stored),  # first, so that its workers fork from a small process
            "torch": fed(by_torch),
            "dali": fed(by_dali),
            "webdataset": from_webdataset(work, stored),
        }
        turns = [{name: _turn(loader) for name, loader in loaders.items()} for _ in range(TURNS)]
    return {name: statistics.median(turn[name] for turn in turns) for name in loaders}


def _turn(loader: Iterator[object]) -> float:
    """Return the images per second, counting whole batches."""
    _take(loader, UNTIMED)
    start = time.perf_counter()
    batches = _take(loader, TIMED)
    return BATCH * batches / (time.perf_counter() - start)


def _take(loader: Iterator[object], seconds: float) -> int:
    """Take batches for `seconds` and return their number."""
    end, batches = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        next(loader)
        batches += 1
    return batches


def _compared(work: Workload, speeds: dict[str, float]) -> Iterator[Row]:
    files = f"{work.files} files, PIL, {THREADS}-worker DataLoader"
    for case, ours, baseline, theirs in (
        (work.name, "dali", files, "files"),
        (work.name, "dali", "DALI readers.webdataset, images alone", "webdataset"),
        (f"{work.name}, torch feed", "torch", files, "files"),
    ):
        yield Row(
            case=case,
            baseline=baseline,
            ours=speeds[ours],
            theirs=speeds[theirs],
            unit="img/s",
            ratio=speeds[ours] / speeds[theirs],
            floor=None,
            device=describe(torch.device("cpu")),
            dtype="fp32",
            shape=f"batch {BATCH}, {work.side}x{work.side}, {work.images} images",
            commit=commit(),
        )
