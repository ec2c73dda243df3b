import numpy as np
import pytest

from engine.feed.sampler import apportioned

DRAWS = np.arange(20_001)


@pytest.mark.parametrize(
    "weights",
    [[1.0], [0.7, 0.3], [1.0, 0.001], [0.2, 0.5, 0.3], [1.0, 1e-4, 1e-4], [1.0, 1.0, 1.0, 1.0], [8, 4, 2, 1]],
    ids=str,
)
def test_every_count_is_within_one_of_its_share_and_never_falls(weights: list[float]) -> None:
    counts = apportioned(weights, DRAWS)
    shares = np.outer(np.array(weights) / sum(weights), DRAWS)
    np.testing.assert_array_equal(counts.sum(axis=0), DRAWS)
    assert np.abs(counts - shares).max() < 1 + 1e-9
    assert (np.diff(counts, axis=1) >= 0).all()


def test_asks_only_for_what_is_asked() -> None:
    weights = [0.2, 0.5, 0.3]
    some = np.array([0, 17, 12_345])
    np.testing.assert_array_equal(apportioned(weights, some), apportioned(weights, DRAWS)[:, some])
