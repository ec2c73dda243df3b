import math
from itertools import permutations

import numpy as np
import pytest

from engine.feed.shuffle import hashed, permuted


def shuffle(size: int, seed: int) -> np.ndarray:
    places = np.arange(size, dtype=np.uint64)
    return permuted(places, np.array([size], np.uint64), hashed(seed))


def chi_square(counts: np.ndarray) -> float:
    """Pearson's statistic against equal counts, in standard deviations from its mean."""
    expected = counts.sum() / counts.size
    degrees = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 100, 1000, 65_537, 1 << 17])
def test_is_a_permutation(size: int) -> None:
    np.testing.assert_array_equal(np.sort(shuffle(size, 5)), np.arange(size))


def test_every_size_up_to_300_under_one_call() -> None:
    sizes = np.repeat(np.arange(1, 301), np.arange(1, 301)).astype(np.uint64)
    places = np.concatenate([np.arange(size) for size in range(1, 301)]).astype(np.uint64)
    walked = permuted(places, sizes, hashed(3, sizes))
    for size in range(1, 301):
        np.testing.assert_array_equal(np.sort(walked[sizes == size]), np.arange(size))


def test_small_shuffles_are_equally_likely() -> None:
    """All 24 orders of four things."""
    keys = np.repeat(hashed(np.arange(24_000)), 4)
    places = np.tile(np.arange(4, dtype=np.uint64), 24_000)
    found = permuted(places, np.array([4], np.uint64), keys).reshape(-1, 4)
    ranks = {order: rank for rank, order in enumerate(permutations(range(4)))}
    counts = np.bincount([ranks[tuple(order)] for order in found.tolist()], minlength=24)
    assert abs(chi_square(counts)) < 4


@pytest.mark.parametrize("size", [2, 3, 5, 10, 37, 128])
def test_neighbours_go_anywhere(size: int) -> None:
    """Where places 0 and 1 go: every pair of different numbers as often."""
    keys = hashed(np.arange(max(200_000, 60 * size * size)))
    first, second = (
        permuted(np.array([place], np.uint64), np.array([size], np.uint64), keys) for place in (0, 1)
    )
    counts = np.bincount((first * np.uint64(size) + second).astype(np.int64), minlength=size * size)
    apart = ~np.eye(size, dtype=bool).ravel()
    assert counts[~apart].sum() == 0
    assert abs(chi_square(counts[apart])) < 4


def test_shuffles_of_two_epochs_share_no_more_than_chance() -> None:
    """Fixed points of a random shuffle are Poisson distributed with mean 1."""
    fixed = [int((shuffle(1000, seed) == shuffle(1000, seed + 1)).sum()) for seed in range(0, 400, 2)]
    assert 0.7 < np.mean(fixed) < 1.3
    assert 0.6 < np.var(fixed) < 1.6


def test_golden_values() -> None:
    """On every platform, so that a run goes on elsewhere."""
    assert hashed(1, 2, 3).tolist() == [15020427595393229491]
    assert shuffle(11, 2026).tolist() == [10, 3, 9, 6, 1, 2, 7, 8, 0, 4, 5]
