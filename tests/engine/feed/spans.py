"""Indexes without tars, and small banks with their pixels."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.feed.shard import encoded, write_shard
from engine.bank.rows import Spans
from engine.feed.index import Index

QUALITY = {"jpeg": {"quality": 95}, "webp": {"quality": 95}}


def spans(labels: Sequence[int], *, first_key: int = 0, sizes: Sequence[int] | int = 3200) -> Spans:
    count = len(labels)
    return Spans(
        path=Path(f"{first_key}.tar"),
        offsets=512 + 5120 * np.arange(count),
        sizes=np.broadcast_to(np.array(sizes), count),
        keys=np.arange(first_key, first_key + count),
        labels=np.array(labels),
        agrees=np.arange(count) % 2 == 0,
    )


def index_of(*labels: Sequence[int]) -> Index:
    """Return an index with one shard per list of labels."""
    index = Index()
    for shard, of_shard in enumerate(labels):
        index.add(spans(of_shard, first_key=1000 * shard))
    return index


@dataclass
class TinyBank:
    """A small bank: its index and the pixels of its images, in the order of the rows."""

    folder: Path
    codec: str
    side: int
    index: Index
    pixels: npt.NDArray[np.uint8]
    channels: int = 3
    """Channels of the files."""

    @classmethod
    def empty(cls, folder: Path, codec: str, side: int, channels: int = 3) -> "TinyBank":
        return cls(folder, codec, side, Index(), np.zeros((0, side, side, 3), np.uint8), channels)

    def decoded_pixels(self) -> npt.NDArray[np.uint8]:
        """Return `pixels` after a round trip through the codec with Pillow, uint8 [N, H, W, 3]."""
        if self.codec == "raw":
            return self.pixels
        files = [self._encoded(image) for image in self.pixels]
        return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])

    def add(self, count: int) -> Spans:
        """Add a shard of smooth random images whose label is their row modulo 5."""
        first = len(self.pixels)
        rng = np.random.default_rng(first)
        coarse = rng.integers(0, 256, (count, 4, 4, self.channels))
        repeated = coarse.repeat(self.side // 4, axis=1).repeat(self.side // 4, axis=2)
        pixels = np.clip(repeated + rng.integers(-9, 10, repeated.shape), 0, 255).astype(np.uint8)
        pixels = np.repeat(pixels, 3 // self.channels, axis=3)
        files = [self._encoded(image) for image in pixels]
        labels = [(first + place) % 5 for place in range(count)]
        agrees = [(first + place) % 3 > 0 for place in range(count)]
        path = self.folder / f"{first}.tar"
        added = write_shard(path, files, labels, codec=self.codec, first_key=first, agrees=agrees)
        self.index.add(added)
        self.pixels = np.concatenate([self.pixels, pixels])
        return added

    def _encoded(self, image: npt.NDArray[np.uint8]) -> bytes:
        grey = image[..., :1] if self.codec == "raw" else image[..., 0]
        return encoded(image if self.channels == 3 else grey, self.codec, **QUALITY.get(self.codec, {}))
