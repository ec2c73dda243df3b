"""Measure the feed's memory as its bank grows, in a separate process."""

import gc
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from bench.feed.loaders import BATCH
from bench.feed.shard import encoded, write_shard
from bench.feed.workload import CLASSES, smooth
from bench.machine import describe
from bench.rows import Row, commit
from engine.bank.rows import Spans
from engine.config.feed import FeedConfig
from engine.errors import UserError
from engine.feed.index import Index
from engine.feed.open import open_feed
from engine.feed.sampler import Sampler

SIDE, SHARD = 32, 10_000
STEPS = 500
"""Steps before each reading, so that caches and pools are full."""
_IN_MEMORY = 3 * SIDE**2 + 3 * 8
"""Bytes per image of a bank held as uint8 tensors: pixels, key, label, teacher's class."""


def rows(images: int) -> Iterator[Row]:
    """Yield the RSS after STEPS steps on a bank of 10 000 images, and after STEPS more on `images` images."""
    images = max(2 * SHARD, images // SHARD * SHARD)
    with TemporaryDirectory() as folder:
        spans = _first_shard(Path(folder))
        _require_space(Path(folder), spans.path.stat().st_size * images // SHARD)
        for number in range(1, images // SHARD):
            shutil.copyfile(spans.path, _path(Path(folder), number))
        command = [sys.executable, "-m", "bench.feed.memory", folder, str(images)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    small, large = json.loads(done.stdout)
    per_image = (large - small) / (images - SHARD)
    yield _row("feed/memory", f"at {SHARD} images", large / 2**20, small / 2**20, "MiB of RSS", images)
    yield _row("feed/memory, growth", "uint8 images in memory", per_image, _IN_MEMORY, "B per image", images)


def _row(case: str, baseline: str, ours: float, theirs: float, unit: str, images: int) -> Row:
    return Row(
        case=case,
        baseline=baseline,
        ours=ours,
        theirs=theirs,
        unit=unit,
        ratio=theirs / ours,
        floor=None,
        device=describe(torch.device("cpu")),
        dtype="fp32",
        shape=f"{images} raw images {SIDE}x{SIDE}, batch {BATCH}, classes balanced",
        commit=commit(),
    )


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.tar"


def _first_shard(folder: Path) -> Spans:
    files = [encoded(smooth(number, SIDE), "raw") for number in range(SHARD)]
    spans = write_shard(_path(folder, 0), files, [number % CLASSES for number in range(SHARD)], codec="raw")
    np.savez(folder / "spans.npz", offsets=spans.offsets, sizes=spans.sizes)
    return spans


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 1.2 * needed:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, but the bank takes {needed / 1e9:.1f} GB; set TMPDIR to"
            " a larger disk, or reduce --images"
        )


def measure(folder: Path, images: int) -> tuple[int, int]:
    """Return the bytes of RSS with one shard, and with all shards in the same feed."""
    index = Index()
    feed = open_feed(
        FeedConfig(kind="dali"),
        index,
        codec="raw",
        image_size=(SIDE, SIDE),
        channels=3,
        batch_size=BATCH,
        device=torch.device("cpu"),
    )
    with feed:
        readings = []
        for shards in (range(1), range(1, images // SHARD)):
            for number in shards:
                index.add(_spans(folder, number))
            sampler = Sampler(index, batch_size=BATCH, seed=0, class_balance=True)
            for _ in feed.batches(sampler, 0, STEPS):
                pass
            gc.collect()
            readings.append(_rss())
    return readings[0], readings[1]


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()


def _spans(folder: Path, number: int) -> Spans:
    with np.load(folder / "spans.npz") as arrays:
        keys = np.arange(number * SHARD, (number + 1) * SHARD)
        return Spans(
            path=_path(folder, number),
            offsets=arrays["offsets"],
            sizes=arrays["sizes"],
            keys=keys,
            labels=keys % CLASSES,
            agrees=np.ones(SHARD, bool),
        )


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
