"""Endless batches of our feed and of its baselines: float [BATCH, 3, H, W] in [0, 1], cropped and flipped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bench.feed.workload import StoredWorkload, Workload
from engine.config.feed import FeedConfig
from engine.feed.feed import Feed
from engine.feed.open import open_feed
from engine.feed.sampler import Sampler
from engine.feed.shuffle import PAD

BATCH = 128
THREADS = 2
ENDLESS = 10**9
_EXTENSIONS = {"raw": "npy", "jpeg": "jpg"}


def opened(work: Workload, stored: StoredWorkload, kind: Literal["dali", "torch"]) -> Feed:
    """Open our feed of a workload on the CPU."""
    return open_feed(
        FeedConfig(kind=kind, threads=THREADS),
        stored.index,
        codec=work.codec,
        image_size=(work.side, work.side),
        channels=3,
        batch_size=BATCH,
        device=torch.device("cpu"),
    )


def fed(feed: Feed) -> Iterator[Tensor]:
    """Yield the images of our batches."""
    sampler = Sampler(feed.index, batch_size=BATCH, seed=0)
    return (batch.images for batch in feed.batches(sampler, 0, ENDLESS))


def from_files(work: Workload, stored: StoredWorkload) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels as research code does: a file per image, Pillow, torchvision, two workers."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    augmented = transforms.Compose(
        [
            transforms.RandomCrop(work.side, padding=PAD),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    loader: DataLoader[Any] = DataLoader(
        ImageFolder(str(stored.folders), augmented),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=THREADS,
        persistent_workers=True,
    )
    while True:
        yield from loader


def from_webdataset(work: Workload, stored: StoredWorkload) -> Iterator[Tensor]:
    """Yield images from DALI's own reader of the same tar; it skips labels, so it never parses the JSON."""
    from nvidia.dali import pipeline_def

    pipeline = pipeline_def(_webdataset)(
        work, stored.tar, batch_size=BATCH, num_threads=THREADS, device_id=None, seed=0
    )
    pipeline.build()
    while True:
        (images,) = pipeline.run()
        yield torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)


def _webdataset(work: Workload, tar: Path) -> Any:
    from nvidia.dali import fn, types

    files = fn.readers.webdataset(
        paths=[str(tar)], ext=[_EXTENSIONS[work.codec]], random_shuffle=True, initial_fill=1024
    )
    if work.codec == "raw":
        pixels = fn.slice(files, 128, work.side**2 * 3, axes=[0])
        images = fn.reshape(pixels, shape=[work.side, work.side, 3], layout="HWC")
    else:
        images = fn.decoders.image(files, output_type=types.RGB)
    start = fn.random.uniform(range=[-PAD, PAD + 1], shape=[2])
    images = fn.slice(
        images,
        start=fn.cast(start, dtype=types.INT32),
        shape=[work.side, work.side],
        axes=[0, 1],
        out_of_bounds_policy="pad",
        fill_values=[0.0],
    )
    return fn.crop_mirror_normalize(
        images,
        mirror=fn.random.coin_flip(),
        mean=[0.0],
        std=[255.0],
        dtype=types.FLOAT,
        output_layout="HWC",
    )
