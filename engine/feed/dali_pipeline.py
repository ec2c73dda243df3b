"""A DALI pipeline that decodes, crops, mirrors and scales the batches it is given."""

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.feed.sampler import Draw
from engine.feed.tars import Bytes

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
