"""What every kind of feed does."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from engine.feed.index import Index
from engine.feed.sampler import Draw, Order
from kernels.crop_flip import crop_flip


class FeedBatch(NamedTuple):
    """The images of a step, cropped and mirrored, on the student's device."""

    images: Tensor
    """Floating [B, 3, H, W] in [0, 1], channels_last."""
    labels: Tensor
    """int64 [B]."""
    agrees: Tensor
    """bool [B]: where the teacher's top-1 is the label."""
    relative_agreement: float = 1.0
    """Share of agreeing images over that of the global batch, of which this may be one rank's part; 1 if none
    agrees."""


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Feed(ABC):
    """Batches of an index's images, read, decoded, cropped and mirrored ahead of their use."""

    def __init__(self, index: Index, device: torch.device) -> None:
        self.index, self.device = index, device

    @abstractmethod
    def batches(self, order: Order, first: int, last: int) -> Iterator[FeedBatch]:
        """The batches of the steps first..last - 1 of `order`; nothing is read for a step beyond them.

        One at a time: a call ends the iterator of the call before. Raises UserError naming tar and key for an
        image that is damaged or has another size.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop the threads or processes, and close the tars."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def labelled(self, images: Tensor, draw: Draw) -> FeedBatch:
        """The draw's images, on the device already, with what the index knows of them."""
        labels, agrees = (torch.from_numpy(of(draw.rows)) for of in (self.index.labels, self.index.agrees))
        relative = 1.0 if len(draw.rows) == len(draw.global_rows) else self._relative_agreement(draw)
        return FeedBatch(images, labels.to(self.device), agrees.to(self.device), relative)

    def _relative_agreement(self, draw: Draw) -> float:
        of_all = self.index.agrees(draw.global_rows).mean()
        return float(self.index.agrees(draw.rows).mean() / of_all) if of_all > 0 else 1.0


def cropped(images: Tensor, draw: Draw, *, pad: int, threads: int | None = None) -> Tensor:
    """float32 [B, H, W, 3] in [0, 1] of images uint8 [B, H, W, 3], on their device.

    `pad` of the draw's order; `threads` as of `crop_flip`.
    """
    top, left, flip = (
        torch.from_numpy(column).to(images.device) for column in (draw.top, draw.left, draw.flip)
    )
    return crop_flip(images, top.long(), left.long(), flip, pad=pad, threads=threads)
