"""Per-image data of a shard: its rows, and the location of each kept image in the tar."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One row per image, including rejected ones, in ascending order of the keys; all columns [N]."""

    keys: Int
    """Unique within the shard."""
    labels: Int
    parents: Int
    """Key of the source image, -1 for a source."""
    seeds: Int
    """Seed of the image's noise."""
    similarity: Float
    """CLIP similarity in [-1, 1] by filter.criterion; NaN for a source, and if CLIP was not used."""
    passes_clip: Bool
    """Whether the similarity is high enough; True for a source, and if CLIP was not used."""
    kept: Bool
    """Whether the image is in the tar; True for a source."""
    teacher_top1: Int
    confidence: Float
    """The teacher's probability for its top-1 class."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """The byte span of each of the K kept images of a shard, in ascending order of the keys; columns [K]."""

    path: Path
    """Local file: the tar itself or a verified copy."""
    offsets: Int
    """Offset of the encoded image in the tar, in bytes."""
    sizes: Int
    """Size of the encoded image in bytes."""
    keys: Int
    labels: Int
    agrees: Bool
    """Whether the teacher's top-1 class is the label."""

    def __len__(self) -> int:
        return len(self.keys)


def row_fault(rows: Rows, num_classes: int) -> str | None:
    """Return why the rows are invalid, or None if they are valid."""
    for field in fields(rows):
        if getattr(rows, field.name).shape != (len(rows),):
            return f"the column {field.name} has another length"
    if len(rows) and (rows.keys[0] < 0 or (np.diff(rows.keys) <= 0).any()):
        return "the keys are negative or do not ascend"
    if len(rows) and not 0 <= rows.labels.min() <= rows.labels.max() < num_classes:
        return f"a label is not in [0, {num_classes})"
    return None
