from collections import Counter
from typing import Any

import numpy as np
import pytest

from engine.errors import UserError
from engine.feed.index import Index
from engine.feed.sampler import Draw, Order
from engine.feed.shuffle import PAD
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


def rows_of(order: Order, first: int, last: int) -> np.ndarray:
    return np.concatenate([draw.rows for draw in order.draws(first, last)])


def assert_same(ours: Draw, theirs: Draw) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_same_alone_and_in_any_range(kind: str) -> None:
    order = Order(two_banks(), batch_size=24, seed=1, first_step=100, **KINDS[kind])
    together = list(order.draws(100, 900))  # more than one block of draws
    for step in (100, 441, 442, 899):
        assert_same(order.draw(step), together[step - 100])
    for draw, other in zip(order.draws(880, 900), together[780:], strict=True):
        assert_same(draw, other)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_share_out_the_global_batch(kind: str) -> None:
    index = two_banks()
    whole = Order(index, batch_size=24, seed=1, **KINDS[kind]).draw(7)
    parts = [Order(index, batch_size=24, seed=1, rank=r, world=3, **KINDS[kind]).draw(7) for r in range(3)]
    mine = [np.concatenate(column) for column in list(zip(*parts, strict=True))[:-1]]
    for part in parts:
        assert_same(whole, Draw(*mine, part.global_rows))  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_added_later_change_nothing(kind: str) -> None:
    index = two_banks()
    order = Order(index, batch_size=24, seed=1, **KINDS[kind])
    before = order.draw(50)
    index.add(spans([6] * 30), bank=0)
    assert_same(order.draw(50), before)
    assert_same(Order(index, batch_size=24, seed=1, rows=200, **KINDS[kind]).draw(50), before)
    later = Order(index, batch_size=24, seed=1, **KINDS[kind])
    assert rows_of(later, 0, 40).max() >= 200


def test_every_row_once_an_epoch_and_each_epoch_another_order() -> None:
    rows = rows_of(Order(index_of([0] * 97), batch_size=13, seed=4), 0, 97).reshape(13, 97)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(97), (13, 1)))
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 13


def test_seed_and_first_step_change_the_order() -> None:
    index = index_of([0] * 50)
    orders = [
        Order(index, batch_size=50, seed=s, first_step=f).draw(9).rows for s, f in ((0, 0), (1, 0), (0, 9))
    ]
    assert len({tuple(rows) for rows in orders}) == 3


def test_each_block_has_every_class_once_and_each_class_its_rows_once_an_epoch() -> None:
    labels = np.array([2] * 1 + [5] * 3 + [9] * 40)
    order = Order(index_of(labels[:20], labels[20:]), batch_size=15, seed=0, class_balance=True)
    rows = rows_of(order, 0, 80)
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
    order = Order(index, batch_size=10, seed=3, weights=[1, 3], newest_rows=range(190, 200), newest=0.15)
    banks = np.array([index.shards[shard].bank for shard in index.shard_numbers(np.arange(200))])
    of_bank_0 = of_newest = 0
    for step, draw in enumerate(order.draws(0, 300), 1):
        # rows 190.. are of bank 1: of all draws from bank 0, 0.85 / 4 is its stream's
        of_bank_0 += int((banks[draw.rows] == 0).sum())
        assert abs(of_bank_0 - 0.85 / 4 * 10 * step) <= 1
        of_newest += int((draw.rows >= 190).sum())
    assert of_newest == pytest.approx(3000 * (0.15 + 0.85 * 3 / 4 / 10), rel=0.02)


def test_the_streams_of_a_batch_are_shuffled() -> None:
    """Else one rank alone would train on the newest."""
    order = Order(
        index_of([0] * 100, [0] * 100), batch_size=20, seed=3, newest_rows=range(100, 200), newest=0.5
    )
    counts = np.sum([draw.rows >= 100 for draw in order.draws(0, 2000)], axis=0)
    assert abs(chi_square(counts)) < 4
    assert abs(chi_square(2000 - counts)) < 4


def test_crops_are_uniform_and_independent_of_each_other() -> None:
    draws = list(Order(index_of([0] * 500), batch_size=100, seed=8).draws(0, 400))
    top, left, flip = (np.concatenate([draw[column] for draw in draws]).astype(int) for column in (1, 2, 3))
    choices = 2 * PAD + 1
    counts = np.bincount((top * choices + left) * 2 + flip, minlength=2 * choices**2)
    assert len(counts) == 2 * choices**2
    assert abs(chi_square(counts)) < 4


def test_without_flips_nothing_else_changes() -> None:
    index = index_of([0] * 60)
    usual, unflipped = (Order(index, batch_size=20, seed=8, flip=flip).draw(3) for flip in (True, False))
    assert usual.flip.any()
    assert not unflipped.flip.any()
    for name in ("rows", "top", "left"):
        assert np.array_equal(getattr(usual, name), getattr(unflipped, name))


@pytest.mark.parametrize("pad", [0, 1, 7])
def test_crops_reach_as_far_as_the_padding(pad: int) -> None:
    draws = list(Order(index_of([0] * 500), batch_size=100, seed=8, pad=pad).draws(0, 20))
    for offsets in (np.concatenate([draw.top for draw in draws]), np.concatenate([d.left for d in draws])):
        assert set(offsets.tolist()) == set(range(2 * pad + 1))


def test_a_crop_depends_on_the_image_and_its_visit_and_not_on_its_place() -> None:
    """The same images in another batch size have the same crops in each epoch, and other ones in the next."""
    index = index_of([0] * 60)
    by_row = []
    for batch_size in (10, 12):
        draws = list(Order(index, batch_size=batch_size, seed=8).draws(0, 120 // batch_size))
        columns = [np.concatenate(column).reshape(2, 60) for column in zip(*draws, strict=True)]
        by_row.append(
            [{row: crop for row, *crop in zip(*epoch, strict=True)} for epoch in zip(*columns, strict=True)]
        )
    assert by_row[0] == by_row[1]
    assert by_row[0][0] != by_row[0][1]


def test_a_bank_without_images_is_named() -> None:
    with pytest.raises(UserError, match="bank 2 has no images"):
        Order(two_banks(), batch_size=4, seed=0, weights=[1, 0, 1])
    with pytest.raises(UserError, match="the bank has no images"):
        Order(Index(), batch_size=4, seed=0)
