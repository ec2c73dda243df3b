"""The feed by torch's DataLoader: Pillow decodes, in worker processes unless there is nothing to decode."""

from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.errors import UserError
from engine.feed.batch import FeedBatch
from engine.feed.config import FeedConfig
from engine.feed.crops import PAD
from engine.feed.decoding import decoded
from engine.feed.feed import DTYPES, Feed
from engine.feed.index import Index, Int
from engine.feed.order import Draw, Order
from engine.feed.tars import Bytes, Tars

_SCALE = float(np.float32(1 / 255))  # what DALI multiplies by


class _Cropped(NamedTuple):
    images: Tensor  # uint8 [B, H, W, 3]
    rows: Int


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
        self._cropping = _Cropping(self._tars, codec, image_size)
        self._workers = 0 if codec == "raw" else config.threads
        self._running: Generator[FeedBatch] | None = None

    def batches(self, order: Order, first: int, last: int) -> Iterator[FeedBatch]:
        self._stop()
        self._running = self._run(order.draws(first, last))
        return self._running

    def _run(self, draws: Iterator[Draw]) -> Generator[FeedBatch]:
        loader = DataLoader(
            self._cropping,
            batch_size=None,
            sampler=draws,
            num_workers=self._workers,
            pin_memory=self.device.type == "cuda",
        )
        for cropped in loader:
            if isinstance(cropped, UserError):
                raise cropped
            images = cropped.images.to(self.device, non_blocking=True).float().mul_(_SCALE).to(self._dtype)
            yield self.labelled(images.permute(0, 3, 1, 2), cropped.rows)

    def close(self) -> None:
        self._stop()
        self._tars.close()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()


class _Cropping(Dataset[_Cropped | UserError]):
    """A draw's images, cropped. A worker's UserError is given, not raised: torch would write a page on it."""

    def __init__(self, tars: Tars, codec: str, image_size: tuple[int, int]) -> None:
        self._tars, self._codec, self._image_size = tars, codec, image_size

    def __getitem__(self, draw: Draw) -> _Cropped | UserError:
        try:
            images = self._images(draw.rows)
        except UserError as error:
            return error
        cropped = np.zeros((len(draw.rows), *self._image_size, 3), np.uint8)
        for image, target, top, left, flip in zip(images, cropped, *draw[1:], strict=True):
            _crop(image, target, int(top) - PAD, int(left) - PAD, bool(flip))
        return _Cropped(torch.from_numpy(cropped), draw.rows)

    def _images(self, rows: Int) -> Bytes | list[Bytes]:
        if self._codec == "raw":
            return self._tars.raw(rows, self._image_size)
        return [self._decoded(row, file) for row, file in zip(rows, self._tars.encoded(rows), strict=True)]

    def _decoded(self, row: int, file: Bytes) -> Bytes:
        try:
            image = decoded(file)
        except OSError as error:
            raise self._tars.damaged(row, str(error)) from None
        self._tars.require_size(row, image.shape[:2], self._image_size)
        return image


def _crop(image: Bytes, target: Bytes, top: int, left: int, flip: bool) -> None:
    """Write what `target`, a window of its size at (top, left) of `image`, sees of it; mirrored by `flip`."""
    height, width = image.shape[:2]
    seen = target[:, ::-1] if flip else target
    seen[max(-top, 0) : height - top, max(-left, 0) : width - left] = image[
        max(top, 0) : height + top, max(left, 0) : width + left
    ]
