"""The interface of all feeds and what they share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from engine.feed.index import Index
from engine.feed.sampler import BatchSample, Sampler
from kernels.crop_flip import crop_flip


class FeedBatch(NamedTuple):
    """The images of a step, cropped and flipped, on the student's device."""

    images: Tensor
    """Floating [B, 3, H, W] in [0, 1], channels_last."""
    labels: Tensor
    """int64 [B]."""
    agrees: Tensor
    """bool [B]: whether the teacher's top-1 class is the label."""
    relative_agreement: float = 1.0
    """Share of agreeing images in this rank's part, divided by their share in the global batch; 1 if the
    global batch has none."""


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Feed(ABC):
    """Reads, decodes, crops and flips the images of an index ahead of their use."""

    def __init__(self, index: Index, device: torch.device) -> None:
        self.index, self.device = index, device

    @abstractmethod
    def batches(self, sampler: Sampler, first: int, last: int) -> Iterator[FeedBatch]:
        """Yield the batches of steps first..last - 1 of `sampler`; read nothing for later steps.

        A new call ends the iterator of the previous call.

        Raises:
            UserError: if an image is damaged or has another size; the message names its tar and key.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop the threads or processes and close the tars."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def make_batch(self, images: Tensor, sample: BatchSample) -> FeedBatch:
        """Return the batch of a sample's images, which are already on the device."""
        labels = torch.from_numpy(self.index.labels(sample.rows)).to(self.device)
        agrees = torch.from_numpy(self.index.agrees(sample.rows)).to(self.device)
        relative = 1.0 if len(sample.rows) == len(sample.global_rows) else self._relative_agreement(sample)
        return FeedBatch(images, labels, agrees, relative)

    def _relative_agreement(self, sample: BatchSample) -> float:
        of_all = self.index.agrees(sample.global_rows).mean()
        return float(self.index.agrees(sample.rows).mean() / of_all) if of_all > 0 else 1.0


def crop_batch(images: Tensor, sample: BatchSample, *, pad: int, threads: int | None = None) -> Tensor:
    """Crop and flip uint8 images [B, H, W, 3] on their device; return float32 [B, H, W, 3] in [0, 1].

    Args:
        pad: padding of the sampler.
        threads: CPU threads, as for `crop_flip`.
    """
    top, left, flip = (
        torch.from_numpy(column).to(images.device) for column in (sample.top, sample.left, sample.flip)
    )
    return crop_flip(images, top.long(), left.long(), flip, pad=pad, threads=threads)
