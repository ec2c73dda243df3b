"""What a shard knows of each of its images, and where they lie."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One row an image, rejected ones too, in ascending order of the keys; all columns [N]."""

    keys: Int
    """Unique in the shard."""
    labels: Int
    parents: Int
    """Key of the source image, -1 for a source."""
    seeds: Int
    """The seed that the image's noise was drawn from."""
    similarity: Float
    """Cosine of the CLIP embeddings of image and source; NaN for a source and where no CLIP was asked."""
    passes_clip: Bool
    """True for a source."""
    kept: Bool
    """Whether the image is in the shard's tar; True for a source."""
    teacher_top1: Int
    confidence: Float
    """The teacher's probability of its top-1."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Where the K kept images of a shard lie in its tar, in ascending order of the keys; columns [K]."""

    path: Path
    """A local file: the shard's tar, or its verified copy."""
    offsets: Int
    """Of the encoded image's first byte in the tar."""
    sizes: Int
    """Bytes of the encoded image."""
    keys: Int
    labels: Int
    agrees: Bool
    """Where the teacher's top-1 is the label."""

    def __len__(self) -> int:
        return len(self.keys)


def row_fault(rows: Rows, num_classes: int) -> str | None:
    """Why these are no rows of a shard, None where they are."""
    for field in fields(rows):
        if getattr(rows, field.name).shape != (len(rows),):
            return f"the column {field.name} has another length"
    if len(rows) and (rows.keys[0] < 0 or (np.diff(rows.keys) <= 0).any()):
        return "the keys are negative or do not ascend"
    if len(rows) and not 0 <= rows.labels.min() <= rows.labels.max() < num_classes:
        return f"a label is not in [0, {num_classes})"
    return None
