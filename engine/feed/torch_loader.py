"""The feed built on torch's DataLoader: worker processes decode with Pillow; raw pixels need no workers.

One loader serves the feed for its whole life, because workers need no index: each task contains the locations
of its images.
"""

import signal
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.bank.codecs import decoder
from engine.config.feed import FeedConfig
from engine.config.storage import Codec
from engine.errors import UserError
from engine.feed.feed import DTYPES, Feed, FeedBatch, crop_batch
from engine.feed.index import Index, Locations
from engine.feed.sampler import BatchSample, Sampler
from engine.feed.tars import Bytes, TarReader, image_error


class _Task(NamedTuple):
    sample: BatchSample
    locations: Locations


class _Decoded(NamedTuple):
    images: Tensor  # uint8 [B, H, W, C], as stored
    sample: BatchSample


class TorchFeed(Feed):
    """A feed with one DataLoader. Each batch is made by one worker; the loader keeps the order."""

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
        self._tars, self._tasks = TarReader(), _Tasks(index)
        self._decoding = _Decoding(self._tars, codec, image_size, channels)
        self._workers = 0 if codec == "raw" else config.threads
        self._loader = self._new_loader()
        self._running: Generator[FeedBatch] | None = None

    def _new_loader(self) -> DataLoader[Any]:
        """Return a new loader, whose workers start with its first batch and end with the loader."""
        return DataLoader(
            self._decoding,
            batch_size=None,
            sampler=self._tasks,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            worker_init_fn=_end_with_parent,
            collate_fn=_unchanged,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # otherwise each epoch draws from torch's global generator
        )

    def batches(self, sampler: Sampler, first: int, last: int) -> Iterator[FeedBatch]:
        self._stop()
        self._running = self._run(sampler.samples(first, last), sampler.views.crop_padding)
        return self._running

    def _run(self, samples: Iterator[BatchSample], pad: int) -> Generator[FeedBatch]:
        self._tasks.samples = samples
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            images = crop_batch(as_rgb(batch.images, self.device), batch.sample.crops, pad=pad)
            yield self.make_batch(images.permute(0, 3, 1, 2).to(self._dtype), batch.sample)

    def close(self) -> None:
        self._stop()
        self._loader = self._new_loader()
        self._tars.close()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()


class _Tasks:
    """The tasks of the current call of `batches`: samples and the locations of their images."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.samples: Iterator[BatchSample] = iter(())

    def __iter__(self) -> Iterator[_Task]:
        return (_Task(sample, self._index.locations(sample.reads)) for sample in self.samples)


class _Decoding(Dataset[_Decoded | UserError]):
    """Decodes tasks. Errors are returned, because torch would print a traceback if they were raised."""

    def __init__(self, tars: TarReader, codec: Codec, image_size: tuple[int, int], channels: int) -> None:
        self._tars, self._codec, self._shape = tars, codec, (*image_size, channels)
        self._decode = decoder(codec, image_size, channels)

    def __getitem__(self, task: _Task) -> _Decoded | UserError:
        try:
            images = self._images(task.locations)
        except UserError as error:
            return error
        return _Decoded(torch.from_numpy(images), task.sample)

    def _images(self, locations: Locations) -> Bytes:
        """Return the images, uint8 [B, H, W, C]."""
        if self._codec == "raw":
            return self._tars.read_raw(locations, self._shape)
        files = enumerate(self._tars.read_encoded(locations))
        return np.stack([self._decoded(locations, position, file) for position, file in files])

    def _decoded(self, locations: Locations, position: int, file: Bytes) -> Bytes:
        try:
            return self._decode(file.tobytes())
        except ValueError as error:
            raise image_error(locations, position, f"it {error}") from None


def _end_with_parent(_: int) -> None:
    """Kill the worker as soon as its parent dies in any way, because it holds locks that it inherited."""
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]


def _unchanged(batch: Any) -> Any:
    """Return the batch; torch's default would turn the arrays of the sample into tensors."""
    return batch


def as_rgb(images: Tensor, device: torch.device) -> Tensor:
    """Copy uint8 images [B, H, W, C] from the CPU to `device` and repeat grey ones; return [B, H, W, 3].

    Grey images are copied as one channel.
    """
    if device.type == "cpu" and images.shape[3] == 1:
        grey = images.numpy()[..., 0]
        rgb = torch.empty((*grey.shape, 3), dtype=torch.uint8)
        for channel in range(3):  # three times faster than torch's expand
            rgb.numpy()[..., channel] = grey
        return rgb
    return images.to(device, non_blocking=True).expand(-1, -1, -1, 3).contiguous()
