"""The index of all kept images in the shards of one or more banks.

It takes 15 bytes per image, 19 if the encoded images differ in size, and two more from 65,537 classes on.
Stored outputs of the teacher stay in their files, which are mapped.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.bank.rows import Int, Spans
from engine.bank.views import TeacherOutputs, ViewsFile
from engine.errors import UserError

_BLOCK = 512  # bytes; members of a tar start at multiples of it


class RowRanges:
    """The rows of disjoint ascending ranges as one sequence; adjacent ranges are merged."""

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

    def __getitem__(self, positions: Int) -> Int:
        """Return the rows at `positions` in [0, len), int64 [N]."""
        number = np.searchsorted(self._before, positions, side="right") - 1
        return self._starts[number] + positions - self._before[number]

    def all(self) -> Int:
        """Return all rows, int64 [len], ascending."""
        return self[np.arange(len(self))]


class GrowingArray:
    """A growing array with one value per row; `extend` takes amortized O(1) per row.

    The spare capacity is never written, so the operating system allocates no memory for it.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._values = np.empty(0, dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> npt.NDArray[Any]:
        """[N], a view that later calls of `extend` do not change."""
        return self._values[: self._size]

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Append values. Raises ValueError if they do not fit the dtype."""
        if not np.array_equal(values.astype(self._values.dtype), values):
            raise ValueError(f"values are outside {self._values.dtype}")
        end = self._size + len(values)
        if end > len(self._values):
            grown = np.empty(max(end, 2 * len(self._values)), self._values.dtype)
            grown[: self._size] = self.values
            self._values = grown
        self._values[self._size : end] = values
        self._size = end


class Shard(NamedTuple):
    """A shard of the index: the path of its tar, its bank number and its rows."""

    path: str
    bank: int
    rows: range


class Locations(NamedTuple):
    """The locations of N images in their tars, for workers without an index."""

    paths: list[str]
    """Paths of the tars."""
    keys: Int
    """[N], unique within a tar."""
    offsets: Int
    """[N], offset of the encoded image in its tar, in bytes."""
    sizes: Int
    """[N], size of the encoded image in bytes."""


class Index:
    """The images of all shards, one per row. Rows are only appended, so a row count identifies a snapshot."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self._ends = GrowingArray(np.int64)  # end of each shard's rows
        self._keys = GrowingArray(np.int64)
        self._labels = GrowingArray(np.uint16)
        self._agrees = GrowingArray(np.bool_)
        self._blocks = GrowingArray(np.uint32)  # offsets in units of _BLOCK
        self._sizes: GrowingArray | None = None  # size of each image, once they differ
        self._size = 0  # size of every image, until then
        self._outputs: list[TeacherOutputs] = []  # of each shard, if views are stored
        self._view_seeds = GrowingArray(np.uint64)  # of each shard, too

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def nbytes(self) -> int:
        """Memory of the rows in bytes."""
        columns = (self._keys, self._labels, self._agrees, self._blocks, self._sizes)
        return sum(column.values.nbytes for column in columns if column is not None)

    def add(self, spans: Spans, *, bank: int = 0, views: ViewsFile | None = None) -> range:
        """Append the images of a shard of bank number `bank`; return their rows.

        `views`: the teacher's outputs on views of these images, for all shards or for none.
        """
        if (spans.offsets % _BLOCK).any():
            raise UserError(
                f"{spans.path}: an image does not begin at a block boundary; restore the files of the shard"
            )
        rows = range(len(self), len(self) + len(spans))
        self._extend_sizes(spans.sizes)
        self._keys.extend(spans.keys)
        self._extend_labels(spans.labels)
        self._agrees.extend(spans.agrees)
        self._blocks.extend(spans.offsets // _BLOCK)
        self._ends.extend(np.array([rows.stop]))
        self.shards.append(Shard(str(spans.path), bank, rows))
        if views is not None:
            self._outputs.append(views.outputs)
            self._view_seeds.extend(np.array([views.owner.views.seed % 2**64], np.uint64))
        return rows

    def _extend_labels(self, labels: Int) -> None:
        """Append labels; widen the array once a label needs more than 16 bits."""
        if labels.max(initial=0) > np.iinfo(self._labels.values.dtype).max:
            wider = GrowingArray(np.uint32)
            wider.extend(self._labels.values)
            self._labels = wider
        self._labels.extend(labels)

    def _extend_sizes(self, sizes: Int) -> None:
        if self._sizes is None:
            if len(self) == 0 and len(sizes):
                self._size = int(sizes[0])
            if (sizes == self._size).all():
                return
            self._sizes = GrowingArray(np.uint32)
            self._sizes.extend(np.full(len(self), self._size))
        self._sizes.extend(sizes)

    def keys(self, rows: Int) -> Int:
        """Return the keys of the rows, int64 [N], unique within a shard."""
        return self._keys.values[rows]

    def labels(self, rows: Int | slice) -> Int:
        """Return the labels of the rows, int64 [N]."""
        return self._labels.values[rows].astype(np.int64)

    def agrees(self, rows: Int) -> npt.NDArray[np.bool_]:
        """Return whether the teacher's top-1 class is the label, bool [N]."""
        return self._agrees.values[rows]

    def shard_numbers(self, rows: Int) -> Int:
        """Return the position of each row's shard in `shards`, int64 [N]."""
        return np.searchsorted(self._ends.values, rows, side="right")

    def shard_bounds(self, rows: Int) -> tuple[Int, Int]:
        """Return the first row of each row's shard and the shard's size, int64 [N] each."""
        numbers, ends = self.shard_numbers(rows), self._ends.values
        first = np.concatenate([[0], ends])[numbers]
        return first, ends[numbers] - first

    def view_seeds(self, rows: Int) -> npt.NDArray[np.uint64]:
        """Return the seed of the stored views of each row, [N]."""
        return self._view_seeds.values[self.shard_numbers(rows)]

    def teacher_outputs(self, rows: Int, views: Int) -> TeacherOutputs:
        """Return the teacher's outputs on a stored view of each row: logits [N, C], pooled [N, D] or None."""
        numbers = self.shard_numbers(rows)
        places = numbers, rows - self.shard_bounds(rows)[0], views
        has_pooled = all(self._outputs[number].pooled is not None for number in np.unique(numbers).tolist())
        return TeacherOutputs(
            self._stored("logits", *places), self._stored("pooled", *places) if has_pooled else None
        )

    def _stored(self, name: str, numbers: Int, positions: Int, views: Int) -> npt.NDArray[np.float16]:
        """Return rows of the stored outputs `name`, float16 [N, D], at least one."""
        found = np.empty((len(numbers), getattr(self._outputs[numbers[0]], name).shape[2]), np.float16)
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            found[chosen] = getattr(self._outputs[number], name)[positions[chosen], views[chosen]]
        return found

    def locations(self, rows: Int) -> Locations:
        """Return the locations of the rows' images."""
        paths = [self.shards[number].path for number in self.shard_numbers(rows).tolist()]
        offsets = self._blocks.values[rows].astype(np.int64) * _BLOCK
        sizes = np.full(len(rows), self._size) if self._sizes is None else self._sizes.values[rows]
        return Locations(paths, self.keys(rows), offsets, sizes.astype(np.int64))

    def rows_of(self, bank: int | None, count: int) -> RowRanges:
        """Return the rows of a bank (None: of all banks) among the first `count` rows."""
        spans = [shard.rows for shard in self.shards if bank is None or shard.bank == bank]
        return RowRanges([range(rows.start, min(rows.stop, count)) for rows in spans])
