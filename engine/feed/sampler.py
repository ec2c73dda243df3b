"""Which image is drawn at every step, and how it is cropped: a pure function of the step."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engine.errors import UserError
from engine.feed.index import Index, Runs
from engine.feed.shuffle import PAD, Offsets, UInt, crops, hashed, permuted

Int = npt.NDArray[np.int64]


def apportioned(weights: Sequence[float], draws: Int) -> Int:
    """int64 [K, S]: how many of the first draws[s] draws fall to each of K streams; each column sums to it.

    A pure function of `draws`, and no count ever falls: each stream in turn takes its share, rounded to the
    nearest, of what those before it left. Heaviest first, which keeps the counts of up to four streams within
    one of their shares. (Differences of rounded cumulative shares would fall now and then.)
    """
    order = np.argsort(-np.asarray(weights, np.float64), kind="stable")
    counts = np.zeros((len(weights), len(draws)), np.int64)
    left, weight_left = np.asarray(draws, np.int64), float(sum(weights))
    for stream in order[:-1]:
        share = weights[stream] / weight_left
        counts[stream] = np.floor(share * left + 0.5).astype(np.int64)
        left, weight_left = left - counts[stream], weight_left - weights[stream]
    counts[order[-1]] = left
    return counts




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


_DRAWS = 8192
"""What is computed at once, so that numpy's cost a call is shared; no draw depends on it."""


class Draw(NamedTuple):
    """Part of a batch for a rank: which images, how each is cropped from its padded self, then mirrored."""

    rows: Int
    """[B], of the index."""
    top: Offsets
    """int32 [B], in [0, 2 * pad] of the order."""
    left: Offsets
    flip: npt.NDArray[np.bool_]
    global_rows: Int
    """[B * world], of the parts of all ranks, one after another."""


class Order:
    """The draws of a student's steps from `first_step` on, over the rows that the index has now.

    Each step's global batch is drawn from one stream over all rows, or one a bank where `weights[bank]` gives
    the banks' shares, and one over `newest_rows` with the share `newest`; to within an image each stream has
    its share of all draws at every step. A stream goes through its rows epoch by epoch, each time in another
    random order, with `class_balance` each class's rows. The global batch is the same at any `world` size;
    rank r has the r-th part of it. Rows added to the index later change nothing; `rows` takes only so many of
    them, such as a resumed run had when it made its order.

    `pad`: zeros around an image that its crop may reach into; `flip`: whether half of them are mirrored.

    Raises UserError for a bank with a share and no images.
    """

    def __init__(
        self,
        index: Index,
        *,
        batch_size: int,
        seed: int,
        class_balance: bool = False,
        first_step: int = 0,
        newest_rows: range | None = None,
        newest: float = 0.0,
        weights: Sequence[float] | None = None,
        rank: int = 0,
        world: int = 1,
        rows: int | None = None,
        pad: int = PAD,
        flip: bool = True,
    ) -> None:
        if batch_size % world or not 0 <= rank < world:
            raise ValueError(f"a batch of {batch_size} does not divide among {world} ranks (this is {rank})")
        self.index, self.batch_size, self.first_step = index, batch_size, first_step
        self.pad, self.flip = pad, flip
        self.rows = len(index) if rows is None else rows
        part = batch_size // world
        self._mine = slice(rank * part, (rank + 1) * part)
        self._key = hashed(seed, first_step)
        sets = _sets(index, self.rows, newest_rows, newest, weights)
        self._weights = [weight for _, weight in sets]
        self._streams = [self._stream(each, k, class_balance) for k, (each, _) in enumerate(sets)]

    def _stream(self, rows: Runs, number: int, class_balance: bool) -> Stream:
        key = hashed(self._key, number)
        return Balanced(rows, self.index.labels(rows.all()), key) if class_balance else Uniform(rows, key)

    def draw(self, step: int) -> Draw:
        """This rank's part of the batch of a step, `first_step` or later."""
        return next(self.draws(step, step + 1))

    def draws(self, first: int, last: int) -> Iterator[Draw]:
        """`draw` of each of the steps first..last - 1."""
        if first < self.first_step:
            raise ValueError(f"step {first} is before this order's first, {self.first_step}")
        stride = max(1, _DRAWS // self.batch_size)
        for start in range(first, last, stride):
            yield from self._block(start - self.first_step, min(start + stride, last) - self.first_step)

    def _block(self, first: int, last: int) -> Iterator[Draw]:
        """The draws of steps counted from this order's first."""
        bounds = apportioned(self._weights, np.arange(first, last + 1) * self.batch_size)  # [K, S + 1]
        parts = [self._part(number, steps) for number, steps in enumerate(bounds)]
        rows, bits, steps = (np.concatenate(column) for column in zip(*parts, strict=True))
        if len(parts) > 1:
            mixed = np.lexsort((hashed(bits), steps))  # within each step, the streams' images shuffled
            rows, bits = rows[mixed], bits[mixed]
        for batch in np.arange(len(rows)).reshape(-1, self.batch_size):
            mine = batch[self._mine]
            yield Draw(rows[mine], *crops(bits[mine], pad=self.pad, flip=self.flip), rows[batch])

    def _part(self, number: int, bounds: Int) -> tuple[Int, npt.NDArray[np.uint64], Int]:
        """Of one stream: rows, random bits of each visit, and the step it is for, counted in the block."""
        rows, epochs = self._streams[number].at(np.arange(bounds[0], bounds[-1]))
        bits = hashed(self._key, number, epochs, self.index.shard_numbers(rows), self.index.keys(rows))
        return rows, bits, np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))


def _sets(
    index: Index, count: int, newest_rows: range | None, newest: float, weights: Sequence[float] | None
) -> list[tuple[Runs, float]]:
    """The rows of each stream and its share of the draws."""
    banks = {None: 1.0} if weights is None else {k: w for k, w in enumerate(weights) if w > 0}
    sets = [(index.rows_of(bank, count), weight) for bank, weight in banks.items()]
    for bank, (rows, _) in zip(banks, sets, strict=True):
        if not len(rows):
            name = "the bank" if bank is None else f"bank {bank}"
            raise UserError(f"{name} has no images to train on; fill it, or give it no share")
    if newest == 0 or newest_rows is None or len(newest_rows) in (0, count):
        return sets
    total = sum(weight for _, weight in sets)
    return [(rows, (1 - newest) * weight / total) for rows, weight in sets] + [(Runs([newest_rows]), newest)]
