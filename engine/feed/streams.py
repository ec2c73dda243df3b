"""Endless sequences of rows, at random access."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engine.feed.hashing import UInt, hashed
from engine.feed.runs import Runs
from engine.feed.shuffle import permuted

Int = npt.NDArray[np.int64]


class Visits(NamedTuple):
    """Rows, and the how-manieth visit in its stream each of them is; int64 [N]."""

    rows: Int
    epochs: Int


class Stream(Protocol):
    """An endless sequence of rows, each of its set once an epoch."""

    def at(self, draws: Int) -> Visits:
        """The elements of these numbers, counted from 0."""
        ...


class Uniform:
    """Shuffle after shuffle of a set of rows."""

    def __init__(self, rows: Runs, key: UInt) -> None:
        if not len(rows):
            raise ValueError("a stream of no rows")
        self._rows, self._key = rows, key

    def at(self, draws: Int) -> Visits:
        epochs, places = np.divmod(draws, len(self._rows))
        return Visits(self._rows[_shuffled(places, np.array([len(self._rows)]), self._key, epochs)], epochs)


class Balanced:
    """Block after block with every present class once, in a random order; a class's rows in own epochs.

    Keeps 4 bytes a row, 8 from 2^32 rows on: the rows by class. `labels` int64 [len(rows)] are those of the
    rows in order.
    """

    def __init__(self, rows: Runs, labels: Int, key: UInt) -> None:
        if not len(rows):
            raise ValueError("a stream of no rows")
        self._classes, self._counts = np.unique(labels, return_counts=True)
        self._starts = np.cumsum(self._counts) - self._counts
        every = rows.all()
        narrow = np.uint32 if every[-1] < 2**32 else np.int64
        self._by_class = every[np.argsort(labels, kind="stable")].astype(narrow)
        self._key = key

    def at(self, draws: Int) -> Visits:
        blocks, places = np.divmod(draws, len(self._classes))
        present = np.array([len(self._classes)])
        chosen = _shuffled(places, present, hashed(self._key, 0), blocks)
        epochs, places = np.divmod(blocks, self._counts[chosen])
        keys = hashed(self._key, 1, self._classes[chosen])
        places = self._starts[chosen] + _shuffled(places, self._counts[chosen], keys, epochs)
        return Visits(self._by_class[places].astype(np.int64), epochs)


def _shuffled(places: Int, sizes: Int, keys: UInt, epochs: Int) -> Int:
    """Where `places` lie in the shuffles of range(size) named by key and epoch; int64 [N]."""
    return permuted(places.astype(np.uint64), sizes.astype(np.uint64), hashed(keys, epochs)).astype(np.int64)
