"""What the feed knows of each kept image of the banks' shards: 15 bytes, 19 where their sizes differ.

Two more from 65,537 classes on.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.bank.rows import Spans
from engine.errors import UserError

Int = npt.NDArray[np.int64]


class Runs:
    """Rows of disjoint ascending ranges, numbered through; touching ranges are held as one."""

    def __init__(self, ranges: Iterable[range]) -> None:
        merged: list[range] = []
        for each in ranges:
            if len(each) and merged and merged[-1].stop == each.start:
                merged[-1] = range(merged[-1].start, each.stop)
            elif len(each):
                merged.append(each)
        lengths = np.array([len(each) for each in merged], np.int64)
        self._starts = np.array([each.start for each in merged], np.int64)
        self._before = np.cumsum(lengths) - lengths  # rows in the ranges before each
        self._size = int(lengths.sum())

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, places: Int) -> Int:
        """int64 [N]: the rows at `places` in [0, len)."""
        run = np.searchsorted(self._before, places, side="right") - 1
        return self._starts[run] + places - self._before[run]

    def all(self) -> Int:
        """int64 [len], ascending."""
        return self[np.arange(len(self))]


class Column:
    """One value a row; `extend` costs O(1) a row, amortised.

    Its spare room is memory that was never written, which the system does not back.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._values = np.empty(0, dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> npt.NDArray[Any]:
        """[N], a view that later rows do not change."""
        return self._values[: self._size]

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Append. Raises ValueError for values that do not fit the column's dtype."""
        if not np.array_equal(values.astype(self._values.dtype), values):
            raise ValueError(f"values are outside {self._values.dtype}")
        end = self._size + len(values)
        if end > len(self._values):
            grown = np.empty(max(end, 2 * len(self._values)), self._values.dtype)
            grown[: self._size] = self.values
            self._values = grown
        self._values[self._size : end] = values
        self._size = end


_BLOCK = 512  # bytes; what a tar's members begin at


class Shard(NamedTuple):
    """A shard of the index: its tar and the bank that it is of."""

    path: str
    bank: int
    rows: range


class Spots(NamedTuple):
    """Where N images lie, for whoever has no index."""

    paths: list[str]
    """Of their tars."""
    keys: Int
    """[N], unique in their tars."""
    offsets: Int
    """[N], of the encoded image's first byte in its tar."""
    sizes: Int
    """[N], bytes of the encoded image."""


class Index:
    """The images of shards, one row each. Rows are only ever appended, so that a snapshot is their number."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self._ends = Column(np.int64)  # of each shard's rows
        self._keys = Column(np.int64)
        self._labels = Column(np.uint16)
        self._agrees = Column(np.bool_)
        self._blocks = Column(np.uint32)  # offsets in _BLOCK bytes
        self._sizes: Column | None = None  # of each image, once two sizes were seen
        self._size = 0  # of every image, until then

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        columns = (self._keys, self._labels, self._agrees, self._blocks, self._sizes)
        return sum(column.values.nbytes for column in columns if column is not None)

    def add(self, spans: Spans, *, bank: int = 0) -> range:
        """Append a shard's images as rows of the bank of that number; the new rows."""
        if (spans.offsets % _BLOCK).any():
            raise UserError(f"{spans.path}: an image does not begin at a block; restore the shard's files")
        rows = range(len(self), len(self) + len(spans))
        self._extend_sizes(spans.sizes)
        self._keys.extend(spans.keys)
        self._extend_labels(spans.labels)
        self._agrees.extend(spans.agrees)
        self._blocks.extend(spans.offsets // _BLOCK)
        self._ends.extend(np.array([rows.stop]))
        self.shards.append(Shard(str(spans.path), bank, rows))
        return rows

    def _extend_labels(self, labels: Int) -> None:
        """In as many bits as the largest so far needs."""
        if labels.max(initial=0) > np.iinfo(self._labels.values.dtype).max:
            wider = Column(np.uint32)
            wider.extend(self._labels.values)
            self._labels = wider
        self._labels.extend(labels)

    def _extend_sizes(self, sizes: Int) -> None:
        if self._sizes is None:
            if len(self) == 0 and len(sizes):
                self._size = int(sizes[0])
            if (sizes == self._size).all():
                return
            self._sizes = Column(np.uint32)
            self._sizes.extend(np.full(len(self), self._size))
        self._sizes.extend(sizes)

    def keys(self, rows: Int) -> Int:
        """int64 [N], unique in their shards."""
        return self._keys.values[rows]

    def labels(self, rows: Int | slice) -> Int:
        """int64 [N]."""
        return self._labels.values[rows].astype(np.int64)

    def agrees(self, rows: Int) -> npt.NDArray[np.bool_]:
        """bool [N]: where the teacher's top-1 is the label."""
        return self._agrees.values[rows]

    def shard_numbers(self, rows: Int) -> Int:
        """int64 [N]."""
        return np.searchsorted(self._ends.values, rows, side="right")

    def spots(self, rows: Int) -> Spots:
        """Where the images of the rows lie."""
        paths = [self.shards[number].path for number in self.shard_numbers(rows).tolist()]
        offsets = self._blocks.values[rows].astype(np.int64) * _BLOCK
        sizes = np.full(len(rows), self._size) if self._sizes is None else self._sizes.values[rows]
        return Spots(paths, self.keys(rows), offsets, sizes.astype(np.int64))

    def rows_of(self, bank: int | None, count: int) -> Runs:
        """Those of a bank, or of all where None, among the first `count` rows."""
        spans = [shard.rows for shard in self.shards if bank is None or shard.bank == bank]
        return Runs([range(rows.start, min(rows.stop, count)) for rows in spans])
