"""The feed by torch's DataLoader: Pillow decodes, in worker processes unless there is nothing to decode."""

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.errors import UserError
from engine.feed.batch import FeedBatch
from engine.feed.config import FeedConfig
from engine.feed.cropping import cropped
from engine.feed.decoding import decoded
from engine.feed.feed import DTYPES, Feed
from engine.feed.index import Index, Int
from engine.feed.order import Draw, Order
from engine.feed.tars import Bytes, Tars


class _Decoded(NamedTuple):
    images: Tensor  # uint8 [B, H, W, 3]
    draw: Draw


class TorchFeed(Feed):
    """Batch s is made whole by one worker; the loader keeps their order."""

    def __init__(
        self,
        config: FeedConfig,
        index: Index,
        *,
        codec: str,
        image_size: tuple[int, int],
        device: torch.device,
    ) -> None:
        super().__init__(index, device)
        self._dtype = DTYPES[config.dtype]
        self._tars = Tars(index)
        self._decoding = _Decoding(self._tars, codec, image_size)
        self._workers = 0 if codec == "raw" else config.threads
        self._running: Generator[FeedBatch] | None = None

    def batches(self, order: Order, first: int, last: int) -> Iterator[FeedBatch]:
        self._stop()
        self._running = self._run(order.draws(first, last))
        return self._running

    def _run(self, draws: Iterator[Draw]) -> Generator[FeedBatch]:
        loader = DataLoader(
            self._decoding,
            batch_size=None,
            sampler=draws,
            num_workers=self._workers,
            collate_fn=_unchanged,
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            images = cropped(batch.images.to(self.device, non_blocking=True), batch.draw)
            yield self.labelled(images.permute(0, 3, 1, 2).to(self._dtype), batch.draw)

    def close(self) -> None:
        self._stop()
        self._tars.close()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()


class _Decoding(Dataset[_Decoded | UserError]):
    """A draw's images, decoded. A worker's UserError is given, not raised: torch would write a page on it."""

    def __init__(self, tars: Tars, codec: str, image_size: tuple[int, int]) -> None:
        self._tars, self._codec, self._image_size = tars, codec, image_size

    def __getitem__(self, draw: Draw) -> _Decoded | UserError:
        try:
            images = self._images(draw.rows)
        except UserError as error:
            return error
        return _Decoded(torch.from_numpy(images), draw)

    def _images(self, rows: Int) -> Bytes:
        """uint8 [B, H, W, 3]."""
        if self._codec == "raw":
            return self._tars.raw(rows, self._image_size)
        files = self._tars.encoded(rows)
        return np.stack([self._decoded(row, file) for row, file in zip(rows, files, strict=True)])

    def _decoded(self, row: int, file: Bytes) -> Bytes:
        try:
            image = decoded(file)
        except OSError as error:
            raise self._tars.damaged(row, str(error)) from None
        self._tars.require_size(row, image.shape[:2], self._image_size)
        return image


def _unchanged(batch: Any) -> Any:
    """torch's own choice makes tensors of the draw's arrays."""
    return batch
