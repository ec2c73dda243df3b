"""The feed by NVIDIA DALI: what the order names is read here, DALI's threads decode and crop it."""

from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.errors import UserError
from engine.feed.config import FeedConfig
from engine.feed.feed import DTYPES, Feed, FeedBatch, cropped
from engine.feed.index import Index
from engine.feed.sampler import Draw, Order
from engine.feed.tars import Bytes, Tars, damaged

_KEPT = 8
"""Batches whose inputs are kept for DALI to read: more than are under way at once, on a GPU too."""


class DaliPipeline:
    """Batches go in by `submit` and come out, in that order, by `receive`; in between DALI's threads work.

    On a CPU encoded images are only decoded: `kernels.crop_flip` does the rest in one pass, DALI in two.
    It has no end and no epoch: what is not submitted is not run. Prefetch queue depth 1 is DALI's word for
    "run nothing unasked"; the caller submits ahead instead. With `device_id` None all is done on the CPU;
    else raw pixels go to that GPU as bytes, and encoded images are decoded there.
    """

    def __init__(
        self,
        *,
        codec: str,
        image_size: tuple[int, int],
        channels: int,
        batch_size: int,
        threads: int,
        half: bool,
        device_id: int | None,
    ) -> None:
        from nvidia.dali import Pipeline

        self._given: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._image_size, self._device_id = image_size, device_id
        self._pipeline: Any = Pipeline(batch_size, threads, device_id, seed=0, prefetch_queue_depth=1)
        self.crops = codec == "raw" or device_id is not None
        with self._pipeline:
            decoded = _pixels(device_id, channels) if codec == "raw" else _decoded(device_id)
            images = _cropped(decoded, image_size, half) if self.crops else decoded
            shapes = [] if codec == "raw" else [decoded.shape(device="cpu")]
            self._pipeline.set_outputs(images, *shapes)
        self._pipeline.build()

    def submit(self, images: Bytes | list[Bytes], draw: Draw, *, pad: int) -> None:
        """Raw pixels uint8 [B, H, W, C], or encoded images; neither is copied nor may be written to again."""
        pasting = _pasting(draw, self._image_size, pad) if self.crops else {}
        given: dict[str, Any] = {"images": images, **pasting}
        self._given.append(given)
        for name, values in given.items():
            self._pipeline.feed_input(name, values)
        self._pipeline.schedule_run()

    def receive(self) -> tuple[Tensor | None, npt.NDArray[np.int64] | None]:
        """[B, H, W, 3], not copied, and the H, W, C that were decoded, int64 [B, 3], None for raw pixels.

        Floating where the pipeline crops, else uint8, None where the images are of several sizes. Raises
        RuntimeError for an image that DALI cannot decode; the pipeline cannot be used afterwards.
        """
        images, *shapes = self._pipeline.share_outputs(cuda_stream=_stream(self._device_id))
        decoded = shapes[0].as_array().copy() if shapes else None
        tensor = None
        if self.crops or images.is_dense_tensor():
            tensor = torch.from_dlpack(images.as_tensor())  # keeps the memory from being used again
        self._pipeline.release_outputs()
        return tensor, decoded

    def close(self) -> None:
        """End DALI's threads now: a pipeline that a forked process finds in its garbage takes it down."""
        self._pipeline = None
        self._given.clear()


def _stream(device_id: int | None) -> torch.cuda.Stream | None:
    """Where outputs are used, so that DALI writes to their memory again only after what is queued there."""
    return None if device_id is None else torch.cuda.current_stream(device_id)


def _pasting(draw: Draw, image_size: tuple[int, int], pad: int) -> dict[str, npt.NDArray[np.int32]]:
    """Which part of each image shows in its crop, and where; the rest of the crop is padding."""
    corner = np.stack([draw.top, draw.left], axis=1)[:, None] - np.int32(pad)  # [B, 1, 2], in the image
    return {
        "own": np.arange(len(corner), dtype=np.int32)[:, None],
        "from": np.maximum(corner, 0),
        "to": np.maximum(-corner, 0),
        "shape": np.array(image_size, np.int32) - np.abs(corner),
        "mirror": draw.flip.astype(np.int32),
    }


def _input(name: str, dtype: Any, **options: Any) -> Any:
    from nvidia.dali import fn

    return fn.external_source(name=name, dtype=dtype, no_copy=True, **options)


def _pixels(device_id: int | None, channels: int) -> Any:
    """RGB; grey pixels go to a GPU as one channel."""
    from nvidia.dali import fn, types

    images = _input("images", types.UINT8, layout="HWC")
    there = images if device_id is None else images.gpu()
    if channels == 3:
        return there
    return fn.color_space_conversion(there, image_type=types.GRAY, output_type=types.RGB)


def _decoded(device_id: int | None) -> Any:
    from nvidia.dali import fn, types

    device = "cpu" if device_id is None else "mixed"
    return fn.decoders.image(_input("images", types.UINT8), device=device, output_type=types.RGB)


def _cropped(images: Any, image_size: tuple[int, int], half: bool) -> Any:
    """What `_pasting` says on black, mirrored, times float32(1 / 255).

    DALI's slice does the same at a fifth of the speed: it pads pixel by pixel.
    """
    from nvidia.dali import fn, types

    own, begin, end, shape, mirror = (
        _input(name, types.INT32) for name in ("own", "from", "to", "shape", "mirror")
    )
    cropped = fn.multi_paste(
        images, in_ids=own, in_anchors=begin, out_anchors=end, shapes=shape, output_size=list(image_size)
    )
    return fn.crop_mirror_normalize(
        cropped,
        mirror=mirror,
        mean=[0.0],
        std=[255.0],
        dtype=types.FLOAT16 if half else types.FLOAT,
        output_layout="HWC",
    )


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
