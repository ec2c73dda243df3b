"""How much of the student's training a step waits for its batch."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.feed.loaders import BATCH, ENDLESS, THREADS, from_files, opened
from bench.feed.workload import CLASSES, WORKLOADS, lay_out
from bench.machine import describe
from bench.rows import Row, commit
from bench.stages.pair import SIZE, pair
from engine.compute import ComputeConfig, open_accelerator
from engine.feed.feed import FeedBatch
from engine.feed.sampler import Order
from engine.stages.distill import Distiller
from engine.stages.distill_config import DistillConfig

WARM_UP, STEPS, ROUNDS = 3, 10, 3


def rows() -> Iterator[Row]:
    """WRN-40-2 -> WRN-16-1, batch 128, raw 32x32: ours beside the same student fed from PNG files."""
    work = WORKLOADS[0]
    with TemporaryDirectory() as folder:
        laid = lay_out(work, Path(folder))
        files = _with_agreement(from_files(work, laid))
        next(files)  # its workers are forked here, before there are threads
        accelerator = open_accelerator(ComputeConfig(device="cpu"))
        teacher, student = pair(accelerator.device)
        distiller = Distiller(teacher, student, DistillConfig(), 10**6, 0, accelerator, image_size=SIZE)
        distiller.set_training(True)
        with opened(work, laid, "dali") as feed:
            ours = feed.batches(Order(laid.index, batch_size=BATCH, seed=0), 0, ENDLESS)
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
    """The median over ROUNDS, in turns, of the share of STEPS steps' time spent in `next`, in percent."""
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
        asked = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - asked
        distiller.train_step(batch)
    return 100 * waited / (time.perf_counter() - start)
