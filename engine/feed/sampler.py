"""Sample the images of every step and their crops, as a pure function of the step."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engine.bank.rows import Int
from engine.config.views import StoredViews, Views
from engine.errors import UserError
from engine.feed.index import Index, RowRanges
from engine.feed.shuffle import UInt, crop_parameters, hash64, permute
from engine.feed.views import Crops, crops, partners, unmixed_views

_IMAGES_PER_BLOCK = 8192
"""Number of images sampled at once, to amortize numpy's overhead; the samples do not depend on it."""


class ViewSample(NamedTuple):
    """Which stored view of each image is used, and which of them are mixed with another image."""

    numbers: Int
    """[B], view number of each image of the batch."""
    mixed: Int
    """[M], positions in the batch of the images that are mixed."""
    weights: npt.NDArray[np.float32]
    """[M], weight of each of them; the rest is its partner's."""


class BatchSample(NamedTuple):
    """A rank's part of a batch: the images to read and how to crop them."""

    reads: Int
    """[B + M], rows of the index: the B images of the batch, then the partner of each mixed one."""
    crops: Crops
    """[B + M]"""
    global_rows: Int
    """[B * world], the rows of all ranks' images, in rank order."""
    views: ViewSample | None = None
    """None if the images are not seen in stored views."""

    @property
    def rows(self) -> Int:
        """The rows of the batch's images, [B]."""
        return self.reads if self.views is None else self.reads[: len(self.views.numbers)]


class Sampler:
    """The batches of a student's steps from `first_step` on, sampled from the current rows of the index.

    There is one stream over all rows or, with `weights`, one per bank, and one over `newest_rows` with the
    share `newest` of all samples. After every step each stream's count is its share to within one image. A
    stream visits each of its rows once per epoch, in a new random order each time; with `class_balance` it
    draws all classes equally often and visits the rows of each class in epochs of their own.

    The global batch does not depend on `world`; rank r gets its r-th part. Rows that are added to the index
    later are ignored.

    Args:
        batch_size: images of the global batch.
        weights: relative share of each bank, by bank number.
        rows: number of rows to sample from, e.g. as many as a resumed run had (default: all).
        views: how images are cropped and flipped. Stored views are drawn by their own seed; the views of an
            image follow each other from epoch to epoch, from a random one on.
        unmixed_from: step from which stored views that are mixed are left out; None keeps them.

    Raises:
        UserError: if a bank with a share has no images.
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
        views: Views | None = None,
        unmixed_from: int | None = None,
    ) -> None:
        if batch_size % world or not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}: a batch of {batch_size} must divide among the ranks")
        self.index, self.batch_size, self.first_step = index, batch_size, first_step
        self.views, self._unmixed_from = views or Views(), unmixed_from
        self.rows = len(index) if rows is None else rows
        part = batch_size // world
        self._rank_part = slice(rank * part, (rank + 1) * part)
        self._key = hash64(seed, first_step)
        mixture = _mixture(index, self.rows, newest_rows, newest, weights)
        self._weights = [weight for _, weight in mixture]
        self._streams = [self._stream(each, k, class_balance) for k, (each, _) in enumerate(mixture)]

    def _stream(self, rows: RowRanges, number: int, class_balance: bool) -> "Stream":
        key = hash64(self._key, number)
        if class_balance:
            return BalancedStream(rows, self.index.labels(rows.all()), key)
        return UniformStream(rows, key)

    def sample(self, step: int) -> BatchSample:
        """Return this rank's part of the batch of a step."""
        return next(self.samples(step, step + 1))

    def samples(self, first: int, last: int) -> Iterator[BatchSample]:
        """Yield this rank's part of the batches of steps first..last - 1."""
        if first < self.first_step:
            raise ValueError(f"step {first} is before the sampler's first step, {self.first_step}")
        stride = max(1, _IMAGES_PER_BLOCK // self.batch_size)
        for start in range(first, last, stride):
            yield from self._block(start - self.first_step, min(start + stride, last) - self.first_step)

    def _block(self, first: int, last: int) -> Iterator[BatchSample]:
        """Yield the samples of some steps, counted from the sampler's first step."""
        bounds = apportion(self._weights, np.arange(first, last + 1) * self.batch_size)  # [K, S + 1]
        parts = [self._stream_block(number, steps) for number, steps in enumerate(bounds)]
        visits = _Visited(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        if len(parts) > 1:
            mixed = np.lexsort((hash64(visits.bits), visits.steps))  # shuffle the streams within each step
            visits = visits.at(mixed)
        batches = np.arange(len(visits.rows)).reshape(-1, self.batch_size)
        for step, batch in enumerate(batches, self.first_step + first):
            yield self._sample(step, visits.at(batch[self._rank_part]), visits.rows[batch])

    def _sample(self, step: int, visits: "_Visited", global_rows: Int) -> BatchSample:
        """Return the sample of the visits of this rank's part in a step."""
        if not isinstance(self.views, StoredViews):
            drawn = crop_parameters(visits.bits, pad=self.views.crop_padding, flip=self.views.flip)
            return BatchSample(visits.rows, Crops(*drawn), global_rows)
        index, keys = self.index, self.index.keys(visits.rows)
        seeds, (first, sizes) = index.view_seeds(visits.rows), index.shard_bounds(visits.rows)
        is_unmixed = self._unmixed_from is not None and step >= self._unmixed_from
        among = unmixed_views(self.views) if is_unmixed else np.arange(self.views.count)
        start = hash64(self._key, index.shard_numbers(visits.rows), keys) % np.uint64(len(among))
        numbers = among[(start.astype(np.int64) + visits.epochs) % len(among)]
        mixed, positions, weights = partners(self.views, seeds, keys, numbers, visits.rows - first, sizes)
        reads = np.concatenate([visits.rows, first[mixed] + positions])
        own = ViewSample(numbers, mixed, weights)
        seeds, numbers = (np.concatenate([column, column[mixed]]) for column in (seeds, numbers))
        return BatchSample(reads, crops(self.views, seeds, index.keys(reads), numbers), global_rows, own)

    def _stream_block(self, number: int, bounds: Int) -> "_Visited":
        """Return one stream's visits, with steps that count from the block's first one."""
        rows, epochs = self._streams[number].at(np.arange(bounds[0], bounds[-1]))
        bits = hash64(self._key, number, epochs, self.index.shard_numbers(rows), self.index.keys(rows))
        return _Visited(rows, epochs, bits, np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)))


class _Visited(NamedTuple):
    """Visits of rows, with random bits and step of each; all [N]."""

    rows: Int
    epochs: Int
    bits: UInt
    steps: Int

    def at(self, positions: Int) -> "_Visited":
        return _Visited(*(column[positions] for column in self))  # type: ignore[arg-type]


def _mixture(
    index: Index, count: int, newest_rows: range | None, newest: float, weights: Sequence[float] | None
) -> list[tuple[RowRanges, float]]:
    """Return the rows and the weight of each stream."""
    banks = {None: 1.0} if weights is None else {k: w for k, w in enumerate(weights) if w > 0}
    mixture = [(index.rows_of(bank, count), weight) for bank, weight in banks.items()]
    for bank, (rows, _) in zip(banks, mixture, strict=True):
        if not len(rows):
            name = "the bank" if bank is None else f"bank {bank}"
            raise UserError(f"{name} has no images to train on; add shards to it, or set its share to 0")
    if newest == 0 or newest_rows is None or len(newest_rows) in (0, count):
        return mixture
    total = sum(weight for _, weight in mixture)
    older = [(rows, (1 - newest) * weight / total) for rows, weight in mixture]
    return [*older, (RowRanges([newest_rows]), newest)]


def apportion(weights: Sequence[float], totals: Int) -> Int:
    """Split sample counts among K streams; return int64 [K, S], whose column s sums to totals[s].

    A pure function of each total; no stream's count decreases as the total grows. Each stream in turn takes
    its share, rounded to the nearest integer, of what the streams before it left. The heaviest stream comes
    first, which keeps the counts of up to four streams within one of their shares. (Differences of rounded
    cumulative shares would sometimes decrease.)
    """
    order = np.argsort(-np.asarray(weights, np.float64), kind="stable")
    counts = np.zeros((len(weights), len(totals)), np.int64)
    left, weight_left = np.asarray(totals, np.int64), float(sum(weights))
    for stream in order[:-1]:
        share = weights[stream] / weight_left
        counts[stream] = np.floor(share * left + 0.5).astype(np.int64)
        left, weight_left = left - counts[stream], weight_left - weights[stream]
    counts[order[-1]] = left
    return counts


class Visits(NamedTuple):
    """Row indices and the epoch in which each is visited; int64 [N]."""

    rows: Int
    epochs: Int


class Stream(Protocol):
    """An endless sequence of rows."""

    def at(self, positions: Int) -> Visits:
        """Return the visits at these positions of the sequence, counted from 0."""
        ...


class UniformStream:
    """A stream that visits all rows once per epoch, in a new random order each time."""

    def __init__(self, rows: RowRanges, key: UInt) -> None:
        if not len(rows):
            raise ValueError("a stream needs at least one row")
        self._rows, self._key = rows, key

    def at(self, positions: Int) -> Visits:
        epochs, within = np.divmod(positions, len(self._rows))
        return Visits(self._rows[_shuffle(within, np.array([len(self._rows)]), self._key, epochs)], epochs)


class BalancedStream:
    """A stream that visits every class once per block, in random order.

    The rows of each class have epochs of their own. Stores the rows sorted by class, 4 bytes per row (8 from
    2^32 rows on). `labels` are int64 [len(rows)].
    """

    def __init__(self, rows: RowRanges, labels: Int, key: UInt) -> None:
        if not len(rows):
            raise ValueError("a stream needs at least one row")
        self._classes, self._counts = np.unique(labels, return_counts=True)
        self._starts = np.cumsum(self._counts) - self._counts
        every = rows.all()
        narrow = np.uint32 if every[-1] < 2**32 else np.int64
        self._by_class = every[np.argsort(labels, kind="stable")].astype(narrow)
        self._key = key

    def at(self, positions: Int) -> Visits:
        blocks, within = np.divmod(positions, len(self._classes))
        num_classes = np.array([len(self._classes)])
        chosen = _shuffle(within, num_classes, hash64(self._key, 0), blocks)
        epochs, within = np.divmod(blocks, self._counts[chosen])
        keys = hash64(self._key, 1, self._classes[chosen])
        sorted_rows = self._starts[chosen] + _shuffle(within, self._counts[chosen], keys, epochs)
        return Visits(self._by_class[sorted_rows].astype(np.int64), epochs)


def _shuffle(positions: Int, sizes: Int, keys: UInt, epochs: Int) -> Int:
    """Return the values at `positions` of the shuffles of range(size) given by key and epoch, int64 [N]."""
    shuffled = permute(positions.astype(np.uint64), sizes.astype(np.uint64), hash64(keys, epochs))
    return shuffled.astype(np.int64)
