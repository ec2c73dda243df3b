"""A set of rows that are mostly neighbours."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

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
