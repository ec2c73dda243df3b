"""The feed by torch's DataLoader: Pillow decodes, in worker processes unless there is nothing to decode.

One loader serves for the feed's life, as its workers know no bank: each task says where its images lie.
"""

import signal
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.bank.codecs import decoder
from engine.bank.config import Codec
from engine.errors import UserError
from engine.feed.config import FeedConfig
from engine.feed.feed import DTYPES, Feed, FeedBatch, cropped
from engine.feed.index import Index, Spots
from engine.feed.sampler import Draw, Order
from engine.feed.tars import Bytes, Tars, damaged


class _Task(NamedTuple):
    draw: Draw
    spots: Spots


class _Decoded(NamedTuple):
    images: Tensor  # uint8 [B, H, W, C], as they are stored
    draw: Draw


class TorchFeed(Feed):
    """Batch s is made whole by one worker; the loader keeps their order."""

    def __init__(
        self,
        config: FeedConfig,
        index: Index,
        *,
        codec: Codec,
        image_size: tuple[int, int],
        channels: int,
        device: torch.device,
    ) -> None:
        super().__init__(index, device)
        self._dtype = DTYPES[config.dtype]
        self._tars, self._tasks = Tars(), _Tasks(index)
        self._decoding = _Decoding(self._tars, codec, image_size, channels)
        self._workers = 0 if codec == "raw" else config.threads
        self._loader = self._new_loader()
        self._running: Generator[FeedBatch] | None = None

    def _new_loader(self) -> DataLoader[Any]:
        """Its workers begin with its first batch, and end with it."""
        return DataLoader(
            self._decoding,
            batch_size=None,
            sampler=self._tasks,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            worker_init_fn=_end_with_parent,
            collate_fn=_unchanged,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else each epoch takes a number from torch's own
        )

    def batches(self, order: Order, first: int, last: int) -> Iterator[FeedBatch]:
        self._stop()
        self._running = self._run(order.draws(first, last), order.pad)
        return self._running

    def _run(self, draws: Iterator[Draw], pad: int) -> Generator[FeedBatch]:
        self._tasks.draws = draws
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            images = cropped(as_rgb(batch.images, self.device), batch.draw, pad=pad)
            yield self.labelled(images.permute(0, 3, 1, 2).to(self._dtype), batch.draw)

    def close(self) -> None:
        self._stop()
        self._loader = self._new_loader()
        self._tars.close()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()


class _Tasks:
    """The draws of one call of `batches` after that of another, with where their images lie."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.draws: Iterator[Draw] = iter(())

    def __iter__(self) -> Iterator[_Task]:
        return (_Task(draw, self._index.spots(draw.rows)) for draw in self.draws)


class _Decoding(Dataset[_Decoded | UserError]):
    """A draw's images, decoded. A worker's UserError is given, not raised: torch would write a page on it."""

    def __init__(self, tars: Tars, codec: Codec, image_size: tuple[int, int], channels: int) -> None:
        self._tars, self._codec, self._shape = tars, codec, (*image_size, channels)
        self._decode = decoder(codec, image_size, channels)

    def __getitem__(self, task: _Task) -> _Decoded | UserError:
        try:
            images = self._images(task.spots)
        except UserError as error:
            return error
        return _Decoded(torch.from_numpy(images), task.draw)

    def _images(self, spots: Spots) -> Bytes:
        """uint8 [B, H, W, C]."""
        if self._codec == "raw":
            return self._tars.raw(spots, self._shape)
        files = enumerate(self._tars.encoded(spots))
        return np.stack([self._decoded(spots, place, file) for place, file in files])

    def _decoded(self, spots: Spots, place: int, file: Bytes) -> Bytes:
        try:
            return self._decode(file.tobytes())
        except ValueError as error:
            raise damaged(spots, place, f"it {error}") from None


def _end_with_parent(_: int) -> None:
    """At once, even where that is killed: a worker holds the locks that it was forked with."""
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]


def _unchanged(batch: Any) -> Any:
    """torch's own choice makes tensors of the draw's arrays."""
    return batch


def as_rgb(images: Tensor, device: torch.device) -> Tensor:
    """uint8 [B, H, W, 3] of uint8 [B, H, W, C] on the CPU; on `device`, to which C channels are copied."""
    if device.type == "cpu" and images.shape[3] == 1:
        grey = images.numpy()[..., 0]
        rgb = torch.empty((*grey.shape, 3), dtype=torch.uint8)
        for channel in range(3):  # three times as fast as torch's expand
            rgb.numpy()[..., channel] = grey
        return rgb
    return images.to(device, non_blocking=True).expand(-1, -1, -1, 3).contiguous()
