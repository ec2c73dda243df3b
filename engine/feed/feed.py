"""The interface of all feeds and what they share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from engine.feed.index import Index
from engine.feed.sampler import BatchSample, Sampler
from engine.feed.views import Crops, mix
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
    teacher_logits: Tensor | None = None
    """float16 [B, C], the teacher's stored targets for these images; None if it has to be asked."""
    teacher_pooled: Tensor | None = None
    """float16 [B, D], its feature map, averaged over the positions; None if it is not stored."""


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
        """Return the batch of a sample from all images it reads, [B + M, 3, H, W], already on the device."""
        rows, views = sample.rows, sample.views
        labels = torch.from_numpy(self.index.labels(rows)).to(self.device)
        agrees = torch.from_numpy(self.index.agrees(rows)).to(self.device)
        relative = 1.0 if len(rows) == len(sample.global_rows) else self._relative_agreement(sample)
        if views is None:
            return FeedBatch(images, labels, agrees, relative)
        images = mix(images, views.mixed, views.weights)
        outputs = self.index.teacher_outputs(rows, views.numbers)
        stored = (None if each is None else torch.from_numpy(each).to(self.device) for each in outputs)
        return FeedBatch(images, labels, agrees, relative, *stored)

    def _relative_agreement(self, sample: BatchSample) -> float:
        of_all = self.index.agrees(sample.global_rows).mean()
        return float(self.index.agrees(sample.rows).mean() / of_all) if of_all > 0 else 1.0


def crop_batch(images: Tensor, crops: Crops, *, pad: int, threads: int | None = None) -> Tensor:
    """Crop and flip uint8 images [B, H, W, 3] on their device; return float32 [B, H, W, 3] in [0, 1].

    Args:
        pad: padding that the crops are meant for.
        threads: CPU threads, as for `crop_flip`.
    """
    top, left, flip = (torch.from_numpy(column).to(images.device) for column in crops)
    return crop_flip(images, top.long(), left.long(), flip, pad=pad, threads=threads)
