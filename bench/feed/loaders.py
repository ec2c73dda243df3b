"""Endless batches, float [BATCH, 3, H, W] in [0, 1], cropped and flipped: ours and its baselines'."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bench.feed.workload import Laid, Workload
from engine.feed.config import FeedConfig
from engine.feed.feed import Feed
from engine.feed.open import open_feed
from engine.feed.sampler import Order
from engine.feed.shuffle import PAD

BATCH = 128
THREADS = 2
ENDLESS = 10**9
_EXTENSIONS = {"raw": "npy", "jpeg": "jpg"}


def opened(work: Workload, laid: Laid, kind: Literal["dali", "torch"]) -> Feed:
    """Our feed of a workload on the CPU."""
    return open_feed(
        FeedConfig(kind=kind, threads=THREADS),
        laid.index,
        codec=work.codec,
        image_size=(work.side, work.side),
        channels=3,
        batch_size=BATCH,
        device=torch.device("cpu"),
    )


def fed(feed: Feed) -> Iterator[Tensor]:
    """The images of our batches."""
    order = Order(feed.index, batch_size=BATCH, seed=0)
    return (batch.images for batch in feed.batches(order, 0, ENDLESS))


def from_files(work: Workload, laid: Laid) -> Iterator[tuple[Tensor, Tensor]]:
    """Research codes' way: one file an image, Pillow, torchvision's transforms, two workers; with labels."""
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
        ImageFolder(str(laid.folders), augmented),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=THREADS,
        persistent_workers=True,
    )
    while True:
        yield from loader


def from_webdataset(work: Workload, laid: Laid) -> Iterator[Tensor]:
    """DALI's own reader of the same tar, without the labels, which spares it the json."""
    from nvidia.dali import pipeline_def

    pipeline = pipeline_def(_webdataset)(
        work, laid.tar, batch_size=BATCH, num_threads=THREADS, device_id=None, seed=0
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
