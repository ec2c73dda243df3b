"""The feed built on NVIDIA DALI: this process reads the images, and DALI's threads decode and crop them."""

from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.config.feed import FeedConfig
from engine.errors import UserError
from engine.feed.feed import DTYPES, Feed, FeedBatch, crop_batch
from engine.feed.index import Index
from engine.feed.sampler import BatchSample, Sampler
from engine.feed.tars import Bytes, TarReader, image_error
from engine.feed.views import Crops

_PREFETCH = 2
"""Number of batches in flight in DALI while another one is used."""

_KEPT_INPUTS = 8
"""Number of batches whose inputs are kept alive for DALI: more than are ever in flight, even on a GPU."""

_DECODERS_PER_CROPPER = 4
"""Decoding threads per cropping thread. Cropping is a fifth of the work, and more threads would wait for each
other while the decoding threads occupy the cores."""


class DaliPipeline:
    """A DALI pipeline: `submit` starts batches, DALI's threads process them, `receive` returns them in order.

    On a CPU (`device_id` None) encoded images are only decoded, because `kernels.crop_flip` does the rest in
    one pass, while DALI needs two. On a GPU raw pixels are uploaded as bytes, and encoded images are decoded
    there.

    The pipeline has no epochs and runs only what was submitted: a prefetch queue depth of 1 makes DALI run
    nothing ahead, and the caller submits ahead instead.
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

        self._inputs: deque[dict[str, Any]] = deque(maxlen=_KEPT_INPUTS)
        self._image_size, self._device_id = image_size, device_id
        self._pipeline: Any = Pipeline(batch_size, threads, device_id, seed=0, prefetch_queue_depth=1)
        self.crops = codec == "raw" or device_id is not None
        with self._pipeline:
            decoded = _raw_images(device_id, channels) if codec == "raw" else _decoded_images(device_id)
            images = _cropped_images(decoded, image_size, half) if self.crops else decoded
            shapes = [] if codec == "raw" else [decoded.shape(device="cpu")]
            self._pipeline.set_outputs(images, *shapes)
        self._pipeline.build()

    def submit(self, images: Bytes | list[Bytes], crops: Crops, *, pad: int) -> None:
        """Start a batch of raw pixels, uint8 [B, H, W, C], or of encoded images.

        The images are not copied and must not be written to afterwards.
        """
        arguments = _paste_arguments(crops, self._image_size, pad) if self.crops else {}
        inputs: dict[str, Any] = {"images": images, **arguments}
        self._inputs.append(inputs)
        for name, values in inputs.items():
            self._pipeline.feed_input(name, values)
        self._pipeline.schedule_run()

    def receive(self) -> tuple[Tensor | None, npt.NDArray[np.int64] | None]:
        """Return the next batch [B, H, W, 3] without a copy, and its shapes.

        The batch is floating-point if the pipeline crops, else uint8; None if the images differ in size.
        The shapes are the decoded H, W and C, int64 [B, 3], or None for raw pixels.

        Raises:
            RuntimeError: if DALI cannot decode an image; the pipeline cannot be used afterwards.
        """
        images, *shapes = self._pipeline.share_outputs(cuda_stream=_stream(self._device_id))
        decoded = shapes[0].as_array().copy() if shapes else None
        tensor = None
        if self.crops or images.is_dense_tensor():
            tensor = torch.from_dlpack(images.as_tensor())  # keeps DALI from reusing the memory
        self._pipeline.release_outputs()
        return tensor, decoded

    def close(self) -> None:
        """End DALI's threads now; a forked process would crash when it garbage-collects the pipeline."""
        self._pipeline = None
        self._inputs.clear()


def _stream(device_id: int | None) -> torch.cuda.Stream | None:
    """Return the stream that uses the outputs; DALI waits for its work before it reuses their memory."""
    return None if device_id is None else torch.cuda.current_stream(device_id)


def _paste_arguments(crops: Crops, image_size: tuple[int, int], pad: int) -> dict[str, npt.NDArray[np.int32]]:
    """Return the region of each image that its crop shows, and its position there; the rest is padding."""
    padded = np.stack([crops.top, crops.left], axis=1)[:, None]
    corner = padded - np.int32(pad)  # [B, 1, 2]: the crop's first row and column in the image
    return {
        "in_ids": np.arange(len(corner), dtype=np.int32)[:, None],
        "in_anchors": np.maximum(corner, 0),
        "out_anchors": np.maximum(-corner, 0),
        "shapes": np.array(image_size, np.int32) - np.abs(corner),
        "mirror": crops.flip.astype(np.int32),
    }


def _input(name: str, dtype: Any, **options: Any) -> Any:
    from nvidia.dali import fn

    return fn.external_source(name=name, dtype=dtype, no_copy=True, **options)


def _raw_images(device_id: int | None, channels: int) -> Any:
    """Return the raw images as RGB; grey pixels are uploaded to a GPU as one channel."""
    from nvidia.dali import fn, types

    images = _input("images", types.UINT8, layout="HWC")
    on_device = images if device_id is None else images.gpu()
    if channels == 3:
        return on_device
    return fn.color_space_conversion(on_device, image_type=types.GRAY, output_type=types.RGB)


def _decoded_images(device_id: int | None) -> Any:
    from nvidia.dali import fn, types

    device = "cpu" if device_id is None else "mixed"
    return fn.decoders.image(_input("images", types.UINT8), device=device, output_type=types.RGB)


def _cropped_images(images: Any, image_size: tuple[int, int], half: bool) -> Any:
    """Paste the regions of `_paste_arguments` on black, mirror them and multiply by float32(1 / 255).

    DALI's slice operator computes the same at a fifth of the speed, as it pads pixel by pixel.
    """
    from nvidia.dali import fn, types

    names = ("in_ids", "in_anchors", "out_anchors", "shapes")
    arguments = {name: _input(name, types.INT32) for name in names}
    mirror = _input("mirror", types.INT32)
    cropped = fn.multi_paste(images, output_size=list(image_size), **arguments)
    return fn.crop_mirror_normalize(
        cropped,
        mirror=mirror,
        mean=[0.0],
        std=[255.0],
        dtype=types.FLOAT16 if half else types.FLOAT,
        output_layout="HWC",
    )


class _Submitted(NamedTuple):
    sample: BatchSample
    images: Bytes | list[Bytes]


class DaliFeed(Feed):
    """A feed with one DALI pipeline for its whole life, even if the bank grows or the sampler changes."""

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
        self._batch_size, self._tars = batch_size, TarReader()
        self._size_text = "x".join(map(str, image_size))
        self._crop_threads = max(1, config.threads // _DECODERS_PER_CROPPER)
        self._pipeline = self._new_pipeline()
        self._pending: deque[_Submitted] = deque()
        self._running: Generator[FeedBatch] | None = None
        self._pad = 0  # padding of the current sampler

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

    def _restart(self) -> None:
        self._pipeline.close()
        self._pipeline = self._new_pipeline()

    def batches(self, sampler: Sampler, first: int, last: int) -> Iterator[FeedBatch]:
        self._stop()
        self._pad = sampler.views.crop_padding
        self._running = self._run(sampler, first, last)
        return self._running

    def _run(self, sampler: Sampler, first: int, last: int) -> Generator[FeedBatch]:
        try:
            for sample in sampler.samples(first, last):
                self._submit(sample)
                if len(self._pending) > _PREFETCH:
                    yield self._receive()
            while self._pending:
                yield self._receive()
        finally:
            while self._pending:
                self._receive()

    def _submit(self, sample: BatchSample) -> None:
        locations, raw = self.index.locations(sample.reads), self._codec == "raw"
        shape = (*self._image_size, self._channels)
        images = self._tars.read_raw(locations, shape) if raw else self._tars.read_encoded(locations)
        self._pipeline.submit(images, sample.crops, pad=self._pad)
        self._pending.append(_Submitted(sample, images))

    def _receive(self) -> FeedBatch:
        images, shapes = self._received()
        sample = self._pending.popleft().sample
        if shapes is not None:
            for position in np.flatnonzero((shapes[:, :2] != self._image_size).any(axis=1)).tolist():
                size = "x".join(map(str, shapes[position, :2]))
                raise self._damaged(sample, position, f"it is {size}, not {self._size_text}")
        assert images is not None, "images of one size make a tensor"
        if not self._pipeline.crops:
            images = crop_batch(images, sample.crops, pad=self._pad, threads=self._crop_threads)
        return self.make_batch(images.permute(0, 3, 1, 2).to(DTYPES[self._config.dtype]), sample)

    def _received(self) -> tuple[Tensor | None, npt.NDArray[np.int64] | None]:
        try:
            return self._pipeline.receive()
        except RuntimeError as error:
            reason = str(error)  # not `error`, whose frames would keep the broken pipeline alive
        raise self._undecodable(reason)

    def _undecodable(self, reason: str) -> UserError:
        """Find the image that DALI failed on, which it does not name, by running the images one by one."""
        pending = list(self._pending)
        self._pending.clear()
        self._restart()
        for sample, images in pending:
            for position in range(len(images)):
                one = Crops._make(column[position : position + 1] for column in sample.crops)
                try:
                    self._pipeline.submit(images[position : position + 1], one, pad=self._pad)
                    self._pipeline.receive()
                except RuntimeError:
                    self._restart()
                    return self._damaged(sample, position, f"it does not decode to {self._size_text}")
        raise RuntimeError(reason)

    def _damaged(self, sample: BatchSample, position: int, reason: str) -> UserError:
        return image_error(self.index.locations(sample.reads), position, reason)

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()

    def close(self) -> None:
        self._stop()
        self._pipeline.close()
        self._tars.close()
