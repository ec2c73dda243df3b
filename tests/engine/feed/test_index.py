import numpy as np
import pytest

from engine.errors import UserError
from engine.feed.index import Index, Runs
from engine.feed.sampler import Order
from tests.engine.feed.spans import index_of, spans


def test_rows_are_those_of_the_shards_in_order() -> None:
    index = Index()
    first = index.add(spans([3, 1, 2]), bank=0)
    second = index.add(spans([7, 70], first_key=50), bank=1)
    assert (first, second, len(index)) == (range(3), range(3, 5), 5)
    rows = np.array([4, 0, 3])
    assert index.keys(rows).tolist() == [51, 0, 50]
    assert index.labels(rows).tolist() == [70, 3, 7]
    assert index.agrees(rows).tolist() == [False, True, True]
    spots = index.spots(rows)
    assert spots.paths == ["50.tar", "0.tar", "50.tar"]
    assert spots.keys.tolist() == [51, 0, 50]
    assert spots.offsets.tolist() == [512 + 5120, 512, 512]
    assert [shard.path for shard in index.shards] == ["0.tar", "50.tar"]


def test_sizes_are_kept_once_they_differ() -> None:
    index = Index()
    index.add(spans([0, 0], sizes=3200))
    assert index.spots(np.array([1])).sizes.tolist() == [3200]
    assert index.nbytes == 2 * 15
    index.add(spans([0, 0, 0], sizes=[3200, 9, 10**6]))
    assert index.spots(np.arange(5)).sizes.tolist() == [3200, 3200, 3200, 9, 10**6]
    assert index.nbytes == 5 * 19


def test_an_offset_beyond_four_gigabytes() -> None:
    index = Index()
    far = spans([0])
    far.offsets[0] = 512 * (1 << 31)
    index.add(far)
    assert index.spots(np.array([0])).offsets.tolist() == [1 << 40]


def test_labels_of_any_number_of_classes() -> None:
    index = index_of([3, 65_535], [70_000], [4])
    assert index.labels(np.arange(4)).tolist() == [3, 65_535, 70_000, 4]
    assert index.nbytes == 4 * 17
    drawn = Order(index, batch_size=4, seed=0, class_balance=True).draw(0).rows
    assert sorted(index.labels(drawn).tolist()) == [3, 4, 65_535, 70_000]


def test_what_a_column_cannot_hold_is_refused() -> None:
    """By errors that `python -O` keeps."""
    with pytest.raises(ValueError, match="outside uint32"):
        index_of([1 << 32])
    shifted = spans([0])
    shifted.offsets[0] += 1
    with pytest.raises(UserError, match=r"0\.tar: an image does not begin at a block"):
        Index().add(shifted)


def test_growth_copies_a_row_a_constant_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    copied, empty = [], np.empty
    monkeypatch.setattr(np, "empty", lambda size, dtype: copied.append(size) or empty(size, dtype))
    index = Index()
    for shard in range(1000):
        index.add(spans(range(10), first_key=10 * shard))
    rows_allocated = sum(copied) / 5  # columns of 10 000 rows
    assert rows_allocated < 4 * 10_000
    assert index.keys(np.arange(10_000)).tolist() == list(range(10_000))


def test_the_rows_of_a_bank() -> None:
    index = Index()
    for bank, count in ((0, 2), (0, 3), (1, 4), (0, 5)):
        index.add(spans([0] * count), bank=bank)
    assert index.rows_of(None, 14).all().tolist() == list(range(14))
    assert index.rows_of(0, 14).all().tolist() == [0, 1, 2, 3, 4, 9, 10, 11, 12, 13]
    assert index.rows_of(0, 10).all().tolist() == [0, 1, 2, 3, 4, 9]
    assert index.rows_of(1, 7).all().tolist() == [5, 6]
    assert len(index.rows_of(1, 5)) == 0


def test_runs_by_place() -> None:
    runs = Runs([range(5, 8), range(0), range(8, 9), range(20, 22)])
    assert len(runs) == 6
    assert runs[np.array([5, 0, 3, 4])].tolist() == [21, 5, 8, 20]
