"""Images a second, from the files to torch tensors."""

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import kernels
from bench.feed.loaders import BATCH, THREADS, fed, from_files, from_webdataset, opened
from bench.feed.workload import WORKLOADS, Workload, lay_out
from bench.machine import describe
from bench.rows import Row, commit
from bench.timing import in_turns

SECONDS = 2.0
"""Of each run: what was read ahead while others were measured is then a small part."""


def rows() -> Iterator[Row]:
    """Each workload: ours by DALI and by torch beside the files, and beside DALI's own reader."""
    for work in WORKLOADS:
        with TemporaryDirectory() as folder:
            yield from _compared(work, _images_a_second(work, Path(folder)))


def _images_a_second(work: Workload, folder: Path) -> dict[str, float]:
    laid = lay_out(work, folder)
    kernels.retain_freed_memory()  # as a run on a CPU does
    with opened(work, laid, "torch") as by_torch, opened(work, laid, "dali") as by_dali:
        loaders: dict[str, Iterator[object]] = {
            "files": from_files(work, laid),  # first: its workers are forked from a small process
            "torch": fed(by_torch),
            "dali": fed(by_dali),
            "webdataset": from_webdataset(work, laid),
        }
        runs = {name: _Run(loader) for name, loader in loaders.items()}
        ms = in_turns(dict(runs), torch.device("cpu"), runs=5)
    return {name: 1000 * BATCH * run.batches / ms[name] for name, run in runs.items()}


class _Run:
    """Takes as many batches as come in SECONDS at first, and as many again at each later call."""

    def __init__(self, loader: Iterator[object]) -> None:
        self._loader = loader
        for _ in range(5):
            next(loader)
        self.batches = 0

    def __call__(self) -> None:
        for _ in range(self.batches or self._counted()):
            next(self._loader)

    def _counted(self) -> int:
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            next(self._loader)
            self.batches += 1
        return 0


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
