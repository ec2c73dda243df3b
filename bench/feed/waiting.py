"""Measure how much of a training step the student waits for its batch."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.feed.loaders import BATCH, ENDLESS, THREADS, from_files, opened
from bench.feed.workload import CLASSES, WORKLOADS, write_workload
from bench.machine import describe
from bench.rows import Row, commit
from bench.stages.pair import SIZE, pair
from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.config.distill import DistillConfig
from engine.distributed import open_accelerator
from engine.feed.feed import FeedBatch
from engine.feed.sampler import Sampler
from engine.stages.distill import Distiller

WARM_UP, STEPS, ROUNDS = 3, 10, 3


def rows() -> Iterator[Row]:
    """Yield WRN-40-2 -> WRN-16-1, batch 128, raw 32x32: our feed against the same student on PNG files."""
    work = WORKLOADS[0]
    with TemporaryDirectory() as folder:
        stored = write_workload(work, Path(folder))
        files = _with_agreement(from_files(work, stored))
        next(files)  # forks its workers, before this process has threads
        accelerator = open_accelerator(resolve_compute(ComputeConfig(device="cpu")))
        teacher, student = pair(accelerator.device)
        distiller = Distiller(
            teacher, student, DistillConfig(), 10**6, 0, accelerator, image_size=(SIZE, SIZE)
        )
        distiller.set_training(True)
        with opened(work, stored, "dali") as feed:
            ours = feed.batches(Sampler(stored.index, batch_size=BATCH, seed=0), 0, ENDLESS)
            shares = _shares({"ours": ours, "files": files}, distiller)
    yield Row(
        case="feed/waiting",
        baseline=f"{work.files} files, PIL, {THREADS}-worker DataLoader",
        ours=shares["ours"],
        theirs=shares["files"],
        unit="% of a step",
        ratio=shares["files"] / shares["ours"],
        floor=None,
        device=describe(accelerator.device),
        dtype=accelerator.mixed_precision.replace("no", "fp32"),
        shape=f"batch {BATCH}, {CLASSES} classes, WRN-40-2 -> WRN-16-1",
        commit=commit(),
    )


def _with_agreement(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[FeedBatch]:
    for images, labels in batches:
        yield FeedBatch(images, labels, torch.ones_like(labels, dtype=torch.bool))


def _shares(loaders: dict[str, Iterator[FeedBatch]], distiller: Distiller) -> dict[str, float]:
    """Return the percentage of STEPS steps spent in `next`: medians over ROUNDS, loaders alternating."""
    for loader in loaders.values():
        _waited(loader, distiller, WARM_UP)
    taken: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(ROUNDS):
        for name, loader in loaders.items():
            taken[name].append(_waited(loader, distiller, STEPS))
    return {name: statistics.median(shares) for name, shares in taken.items()}


def _waited(loader: Iterator[FeedBatch], distiller: Distiller, steps: int) -> float:
    start, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        begin = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - begin
        distiller.train_step(batch)
    return 100 * waited / (time.perf_counter() - start)
