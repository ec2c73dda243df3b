"""The images that the stages pass on."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Images on the CPU, in RGB even for a grey teacher. Every field has a row per image."""

    images: Tensor  # uint8 [B, 3, H, W]
    labels: Tensor  # int64 [B]
    keys: Tensor  # int64 [B], unique in a run
    parents: Tensor  # int64 [B], key of the source image; -1 for a source
    seeds: Tensor  # int64 [B], seed of the image's noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Self:
        return type(self)(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @classmethod
    def cat(cls, batches: "list[Self]") -> Self:
        return cls(**{f.name: torch.cat([getattr(b, f.name) for b in batches]) for f in fields(cls)})
