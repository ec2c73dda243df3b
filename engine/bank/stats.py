"""Image counts of a shard, which can be summed over shards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from engine.bank.rows import Float, Int, Rows

EDGES = np.linspace(-1, 1, 41).round(2)
"""Bin edges of the similarity histogram, 0.05 apart."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Image counts of one or more shards."""

    rows: int
    """Number of images, including rejected ones."""
    images: int
    """Number of kept images."""
    kept_by_class: Int
    """[C]."""
    similarity_of_all: Int
    """[40], the bins between EDGES; images without a similarity are not counted."""
    similarity_of_kept: Int
    agreeing_rows: int
    """Number of images whose label is the teacher's top-1 class."""
    agreeing_images: int

    @classmethod
    def of(cls, rows: Rows, num_classes: int) -> "Stats":
        """Count the images of a shard."""
        agrees = rows.teacher_top1 == rows.labels
        return cls(
            len(rows),
            int(rows.kept.sum()),
            np.bincount(rows.labels[rows.kept], minlength=num_classes),
            _histogram(rows.similarity),
            _histogram(rows.similarity[rows.kept]),
            int(agrees.sum()),
            int((agrees & rows.kept).sum()),
        )

    @classmethod
    def zero(cls, num_classes: int) -> "Stats":
        """Return the counts of an empty bank."""
        bins = np.zeros(len(EDGES) - 1, np.int64)
        return cls(0, 0, np.zeros(num_classes, np.int64), bins, bins, 0, 0)

    def coverage(self, wanted: Sequence[bool]) -> str:
        """Describe how many of the `wanted` classes, [C], have kept images."""
        missing = int((np.array(wanted, np.bool_) & (self.kept_by_class == 0)).sum())
        count = sum(wanted)
        unwanted = (
            f" with a weight above 0 ({len(wanted) - count:,} have weight 0)" if count < len(wanted) else ""
        )
        if missing:
            return f"warning: {missing:,} of {count:,} classes{unwanted} have no images"
        return f"all {count:,} classes{unwanted} have images"

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def to_json(self) -> bytes:
        """Return the stats file of a shard."""
        document = {
            "rows": self.rows,
            "images": self.images,
            "kept_by_class": self.kept_by_class.tolist(),
            "similarity": {
                "edges": EDGES.tolist(),
                "all": self.similarity_of_all.tolist(),
                "kept": self.similarity_of_kept.tolist(),
            },
            "teacher_agrees": {"rows": self.agreeing_rows, "images": self.agreeing_images},
        }
        return (json.dumps(document) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Stats":
        """Parse what `to_json` wrote.

        Raises:
            ValueError or LookupError: if `data` is anything else.
        """
        read = json.loads(data)
        return cls(
            read["rows"],
            read["images"],
            np.array(read["kept_by_class"], np.int64),
            np.array(read["similarity"]["all"], np.int64),
            np.array(read["similarity"]["kept"], np.int64),
            read["teacher_agrees"]["rows"],
            read["teacher_agrees"]["images"],
        )


def _histogram(similarity: Float) -> Int:
    known = similarity[~np.isnan(similarity)]
    return np.histogram(known.clip(-1, 1), EDGES)[0]
