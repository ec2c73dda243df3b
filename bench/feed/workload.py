"""Write the same random images as a shard of a bank and as the class folders that research code reads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from bench.feed.shard import encoded, write_shard
from engine.config.storage import Codec
from engine.feed.index import Index

CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Workload:
    """`codec` of the bank and format of the baseline's `files`, both encoded by Pillow at default quality."""

    name: str
    side: int
    images: int
    codec: Codec
    files: str


WORKLOADS = (
    Workload(name="feed/32-raw", side=32, images=10_000, codec="raw", files="png"),
    Workload(name="feed/224-jpeg", side=224, images=2_000, codec="jpeg", files="jpeg"),
)


@dataclass(frozen=True)
class StoredWorkload:
    """A workload on disk."""

    tar: Path
    folders: Path
    index: Index


def write_workload(work: Workload, folder: Path) -> StoredWorkload:
    """Write the images under `folder` both ways, label = number modulo CLASSES."""
    folders = folder / "folders"
    for label in range(CLASSES):
        (folders / str(label)).mkdir(parents=True)
    members = []
    for number in range(work.images):
        pixels = smooth(number, work.side)
        members.append(encoded(pixels, work.codec))
        file = encoded(pixels, work.files)
        (folders / str(number % CLASSES) / f"{number:06d}.{work.files}").write_bytes(file)
    tar = folder / "00000.tar"
    index = Index()
    labels = [number % CLASSES for number in range(work.images)]
    index.add(write_shard(tar, members, labels, codec=work.codec))
    return StoredWorkload(tar, folders, index)


def smooth(number: int, side: int) -> npt.NDArray[np.uint8]:
    """Return image `number`, uint8 [side, side, 3]: random values upsampled by 8, plus some noise."""
    generator = torch.Generator().manual_seed(number)
    coarse = torch.rand(1, 3, side // 8, side // 8, generator=generator)
    image = F.interpolate(coarse, (side, side), mode="bicubic")[0] * 255
    image += 4 * torch.randn(image.shape, generator=generator)
    return image.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
