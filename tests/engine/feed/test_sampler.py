from collections import Counter
from typing import Any

import numpy as np
import pytest

from engine.config.views import Views
from engine.errors import UserError
from engine.feed.index import Index
from engine.feed.sampler import BatchSample, Sampler
from engine.feed.shuffle import PAD
from engine.feed.views import Crops
from tests.engine.feed.spans import index_of, spans
from tests.engine.feed.test_shuffle import chi_square

KINDS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "balanced": {"class_balance": True},
    "newest": {"newest_rows": range(150, 200), "newest": 0.3},
    "banks": {"weights": [1.0, 3.0], "newest_rows": range(150, 200), "newest": 0.2, "class_balance": True},
}


def two_banks() -> Index:
    index = Index()
    rng = np.random.default_rng(0)
    for shard in range(20):
        index.add(spans(rng.integers(0, 7, 10), first_key=10 * shard), bank=shard % 2)
    return index


def rows_of(sampler: Sampler, first: int, last: int) -> np.ndarray:
    return np.concatenate([sample.rows for sample in sampler.samples(first, last)])


def assert_same(ours: BatchSample, theirs: BatchSample) -> None:
    for one, other in zip(columns_of(ours), columns_of(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def columns_of(sample: BatchSample) -> list[np.ndarray]:
    return [sample.reads, *sample.crops, sample.global_rows, *(sample.views or ())]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_same_alone_and_in_any_range(kind: str) -> None:
    sampler = Sampler(two_banks(), batch_size=24, seed=1, first_step=100, **KINDS[kind])
    together = list(sampler.samples(100, 900))  # more than one block of samples
    for step in (100, 441, 442, 899):
        assert_same(sampler.sample(step), together[step - 100])
    for sample, other in zip(sampler.samples(880, 900), together[780:], strict=True):
        assert_same(sample, other)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_share_out_the_global_batch(kind: str) -> None:
    index = two_banks()
    whole = Sampler(index, batch_size=24, seed=1, **KINDS[kind]).sample(7)
    parts = [
        Sampler(index, batch_size=24, seed=1, rank=r, world=3, **KINDS[kind]).sample(7) for r in range(3)
    ]
    reads, *crops = (
        np.concatenate(column) for column in zip(*((part.reads, *part.crops) for part in parts), strict=True)
    )
    for part in parts:
        assert_same(whole, BatchSample(reads, Crops(*crops), part.global_rows))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_added_later_change_nothing(kind: str) -> None:
    index = two_banks()
    sampler = Sampler(index, batch_size=24, seed=1, **KINDS[kind])
    before = sampler.sample(50)
    index.add(spans([6] * 30), bank=0)
    assert_same(sampler.sample(50), before)
    assert_same(Sampler(index, batch_size=24, seed=1, rows=200, **KINDS[kind]).sample(50), before)
    later = Sampler(index, batch_size=24, seed=1, **KINDS[kind])
    assert rows_of(later, 0, 40).max() >= 200


def test_every_row_once_an_epoch_and_each_epoch_another_order() -> None:
    rows = rows_of(Sampler(index_of([0] * 97), batch_size=13, seed=4), 0, 97).reshape(13, 97)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(97), (13, 1)))
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 13


def test_seed_and_first_step_change_the_order() -> None:
    index = index_of([0] * 50)
    orders = [
        Sampler(index, batch_size=50, seed=s, first_step=f).sample(9).rows
        for s, f in ((0, 0), (1, 0), (0, 9))
    ]
    assert len({tuple(rows) for rows in orders}) == 3


def test_each_block_has_every_class_once_and_each_class_its_rows_once_an_epoch() -> None:
    labels = np.array([2] * 1 + [5] * 3 + [9] * 40)
    sampler = Sampler(index_of(labels[:20], labels[20:]), batch_size=15, seed=0, class_balance=True)
    rows = rows_of(sampler, 0, 80)
    np.testing.assert_array_equal(np.sort(labels[rows].reshape(-1, 3), axis=1), np.tile([2, 5, 9], (400, 1)))
    for label, count in ((2, 1), (5, 3), (9, 40)):
        visits = rows[labels[rows] == label][: 400 // count * count].reshape(-1, count)
        np.testing.assert_array_equal(
            np.sort(visits, axis=1), np.tile(np.flatnonzero(labels == label), (len(visits), 1))
        )
    orders = Counter(tuple(block) for block in labels[rows].reshape(-1, 3).tolist())
    assert abs(chi_square(np.array(list(orders.values())))) < 4
    assert len(orders) == 6


def test_mixes_are_within_one_of_their_share_at_every_step() -> None:
    index = two_banks()
    sampler = Sampler(index, batch_size=10, seed=3, weights=[1, 3], newest_rows=range(190, 200), newest=0.15)
    banks = np.array([index.shards[shard].bank for shard in index.shard_numbers(np.arange(200))])
    of_bank_0 = of_newest = 0
    for step, sample in enumerate(sampler.samples(0, 300), 1):
        # rows from 190 on belong to bank 1, so bank 0 gets 0.85 / 4 of all samples, from its own stream
        of_bank_0 += int((banks[sample.rows] == 0).sum())
        assert abs(of_bank_0 - 0.85 / 4 * 10 * step) <= 1
        of_newest += int((sample.rows >= 190).sum())
    assert of_newest == pytest.approx(3000 * (0.15 + 0.85 * 3 / 4 / 10), rel=0.02)


def test_the_streams_of_a_batch_are_shuffled() -> None:
    """Otherwise one rank alone would train on the newest rows."""
    sampler = Sampler(
        index_of([0] * 100, [0] * 100), batch_size=20, seed=3, newest_rows=range(100, 200), newest=0.5
    )
    counts = np.sum([sample.rows >= 100 for sample in sampler.samples(0, 2000)], axis=0)
    assert abs(chi_square(counts)) < 4
    assert abs(chi_square(2000 - counts)) < 4


def test_crops_are_uniform_and_independent_of_each_other() -> None:
    samples = list(Sampler(index_of([0] * 500), batch_size=100, seed=8).samples(0, 400))
    top, left, flip = (
        np.concatenate([sample.crops[column] for sample in samples]).astype(int) for column in range(3)
    )
    choices = 2 * PAD + 1
    counts = np.bincount((top * choices + left) * 2 + flip, minlength=2 * choices**2)
    assert len(counts) == 2 * choices**2
    assert abs(chi_square(counts)) < 4


def test_without_flips_nothing_else_changes() -> None:
    index = index_of([0] * 60)
    usual, unflipped = (
        Sampler(index, batch_size=20, seed=8, views=Views(flip=flip)).sample(3) for flip in (True, False)
    )
    assert usual.crops.flip.any()
    assert not unflipped.crops.flip.any()
    assert np.array_equal(usual.rows, unflipped.rows)
    for name in ("top", "left"):
        assert np.array_equal(getattr(usual.crops, name), getattr(unflipped.crops, name))


@pytest.mark.parametrize("pad", [0, 1, 7])
def test_crops_reach_as_far_as_the_padding(pad: int) -> None:
    samples = list(
        Sampler(index_of([0] * 500), batch_size=100, seed=8, views=Views(crop_padding=pad)).samples(0, 20)
    )
    for offsets in (
        np.concatenate([sample.crops.top for sample in samples]),
        np.concatenate([sample.crops.left for sample in samples]),
    ):
        assert set(offsets.tolist()) == set(range(2 * pad + 1))


def test_a_crop_depends_on_the_image_and_its_visit_and_not_on_its_place() -> None:
    """Images have the same crops at any batch size, and different ones in each epoch."""
    index = index_of([0] * 60)
    by_row = []
    for batch_size in (10, 12):
        samples = list(Sampler(index, batch_size=batch_size, seed=8).samples(0, 120 // batch_size))
        columns = [
            np.concatenate(column).reshape(2, 60)
            for column in zip(*((sample.rows, *sample.crops) for sample in samples), strict=True)
        ]
        by_row.append(
            [{row: crop for row, *crop in zip(*epoch, strict=True)} for epoch in zip(*columns, strict=True)]
        )
    assert by_row[0] == by_row[1]
    assert by_row[0][0] != by_row[0][1]


def test_a_bank_without_images_is_named() -> None:
    with pytest.raises(UserError, match="bank 2 has no images"):
        Sampler(two_banks(), batch_size=4, seed=0, weights=[1, 0, 1])
    with pytest.raises(UserError, match="the bank has no images"):
        Sampler(Index(), batch_size=4, seed=0)
