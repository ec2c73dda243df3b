"""The feed by NVIDIA DALI: what the order names is read here, DALI's threads decode and crop it."""

from collections import deque
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.config.feed import FeedConfig
from engine.errors import UserError
from engine.feed.batch import FeedBatch
from engine.feed.cropping import cropped
from engine.feed.dali_pipeline import DaliPipeline
from engine.feed.feed import DTYPES, Feed
from engine.feed.index import Index
from engine.feed.order import Draw, Order
from engine.feed.tars import Bytes, Tars, damaged

_AHEAD = 2
"""Batches that DALI works on while one is used."""

_DECODING_TO_CROPPING = 4
"""Threads that decode for one that crops: it is a fifth of the work, and more would wait for one another
while those that decode have the cores."""


class _Submitted(NamedTuple):
    draw: Draw
    images: Bytes | list[Bytes]


class DaliFeed(Feed):
    """One pipeline for the feed's life: a bank that grows, or another order, goes on in the same one."""

    def __init__(
        self,
        config: FeedConfig,
        index: Index,
        *,
        codec: str,
        image_size: tuple[int, int],
        channels: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        super().__init__(index, device)
        self._config, self._codec, self._image_size = config, codec, image_size
        self._channels = channels
        self._batch_size, self._tars = batch_size, Tars()
        self._wanted = "x".join(map(str, image_size))
        self._cropping = max(1, config.threads // _DECODING_TO_CROPPING)
        self._pipeline = self._new_pipeline()
        self._waiting: deque[_Submitted] = deque()
        self._running: Generator[FeedBatch] | None = None
        self._pad = 0  # of the running order

    def _new_pipeline(self) -> DaliPipeline:
        on_gpu = self.device.type == "cuda"
        return DaliPipeline(
            codec=self._codec,
            image_size=self._image_size,
            channels=self._channels,
            batch_size=self._batch_size,
            threads=self._config.threads,
            half=self._config.dtype == "fp16",
            device_id=(self.device.index or 0) if on_gpu else None,
        )

    def _reopen(self) -> None:
        self._pipeline.close()
        self._pipeline = self._new_pipeline()

    def batches(self, order: Order, first: int, last: int) -> Iterator[FeedBatch]:
        self._stop()
        self._pad = order.pad
        self._running = self._run(order, first, last)
        return self._running

    def _run(self, order: Order, first: int, last: int) -> Generator[FeedBatch]:
        try:
            for draw in order.draws(first, last):
                self._submit(draw)
                if len(self._waiting) > _AHEAD:
                    yield self._receive()
            while self._waiting:
                yield self._receive()
        finally:
            while self._waiting:
                self._receive()

    def _submit(self, draw: Draw) -> None:
        spots, raw = self.index.spots(draw.rows), self._codec == "raw"
        shape = (*self._image_size, self._channels)
        images = self._tars.raw(spots, shape) if raw else self._tars.encoded(spots)
        self._pipeline.submit(images, draw, pad=self._pad)
        self._waiting.append(_Submitted(draw, images))

    def _receive(self) -> FeedBatch:
        images, shapes = self._received()
        draw = self._waiting.popleft().draw
        if shapes is not None:
            for place in np.flatnonzero((shapes[:, :2] != self._image_size).any(axis=1)).tolist():
                size = "x".join(map(str, shapes[place, :2]))
                raise self._damaged(draw, place, f"it is {size}, not {self._wanted}")
        assert images is not None, "images of one size make a tensor"
        seen = (
            images if self._pipeline.crops else cropped(images, draw, pad=self._pad, threads=self._cropping)
        )
        return self.labelled(seen.permute(0, 3, 1, 2).to(DTYPES[self._config.dtype]), draw)

    def _received(self) -> tuple[Tensor | None, npt.NDArray[np.int64] | None]:
        try:
            return self._pipeline.receive()
        except RuntimeError as error:
            reason = str(error)  # not `error`: its frames would hold the broken pipeline
        raise self._undecodable(reason)

    def _undecodable(self, reason: str) -> UserError:
        """The error for an image that DALI does not name: a new pipeline is asked about one after another."""
        waiting = list(self._waiting)
        self._waiting.clear()
        self._reopen()
        for draw, images in waiting:
            for place in range(len(images)):
                one = Draw._make(column[place : place + 1] for column in draw)
                try:
                    self._pipeline.submit(images[place : place + 1], one, pad=self._pad)
                    self._pipeline.receive()
                except RuntimeError:
                    self._reopen()
                    return self._damaged(draw, place, f"it does not decode to {self._wanted}")
        raise RuntimeError(reason)

    def _damaged(self, draw: Draw, place: int, reason: str) -> UserError:
        return damaged(self.index.spots(draw.rows), place, reason)

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()

    def close(self) -> None:
        self._stop()
        self._pipeline.close()
        self._tars.close()
