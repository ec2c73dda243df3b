"""Images whose labels the teacher does not confirm are detected."""

from dataclasses import replace

import numpy as np
import pytest

from engine.bank.agreement import Agreement, Agreements
from tests.engine.bank import tiny


def _agreement(images: int, classes: int, share: float, *, seed: int = 0) -> Agreement:
    """Return balanced labels; the teacher knows `share` of them and guesses the others."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    knows = rng.permutation(images) < round(share * images)
    return Agreement.of(labels, np.where(knows, labels, rng.integers(classes, size=images)))


@pytest.mark.parametrize(
    ("images", "classes", "share", "near"),
    [
        (200, 10, 0.0, True),
        (
            5000,
            10,
            0.04,
            True,
        ),  # 13.6 % agree: more than three standard errors above chance, but still useless
        (200, 10, 0.5, False),
        (200, 10, 0.9, False),
        (5000, 10, 0.3, False),
        (400, 2, 0.0, True),
        (400, 2, 0.4, False),  # 70 %
        (200, 1000, 0.0, True),
        (5000, 1000, 0.0, True),
        (5000, 1000, 0.05, False),  # 5 %, fifty times chance
        (2000, 65536, 0.0, True),
        (6, 3, 0.0, False),  # too few to tell
        (60, 2, 0.0, False),
    ],
    ids=str,
)
def test_near_chance(images: int, classes: int, share: float, near: bool) -> None:
    for seed in range(10):
        assert _agreement(images, classes, share, seed=seed).is_near_chance == near


def test_chance_and_its_error_are_those_of_shuffled_predictions() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(4, size=50, p=[0.4, 0.3, 0.2, 0.1])
    top1 = rng.choice(4, size=50, p=[0.7, 0.1, 0.1, 0.1])
    shuffled = [(labels == rng.permutation(top1)).mean() for _ in range(20_000)]
    found = Agreement.of(labels, top1)
    assert found.chance == pytest.approx(np.mean(shuffled), abs=3e-3)
    assert found._standard_error == pytest.approx(np.std(shuffled), rel=0.03)


def test_a_teacher_that_always_says_one_class() -> None:
    labels = np.arange(100) % 10
    assert Agreement.of(labels, np.zeros(100, np.int64)).is_near_chance
    skewed = np.where(np.arange(100) < 70, 0, 1)
    found = Agreement.of(skewed, np.zeros(100, np.int64))
    assert found.agreeing / found.images == found.chance == 0.7
    assert found.is_near_chance


def test_a_single_label_cannot_be_judged() -> None:
    ones = np.ones(100, np.int64)
    assert not Agreement.of(ones, ones).is_near_chance
    assert not Agreement.of(ones, 0 * ones).is_near_chance


def test_shards_add_up_and_sources_come_first() -> None:
    rows, _ = tiny.shard(0)
    assert Agreements().warning is None
    assert Agreements.of(rows).warning is None, "a dozen images are too few"
    good, bad = _agreement(200, 10, 0.9), _agreement(200, 10, 0.0)
    assert Agreements(sources=good, variations=good).warning is None
    of_variations = Agreements(sources=good, variations=bad).warning
    assert of_variations is not None
    assert "200 variations, and chance is 10.0%; try another augment.prior" in of_variations
    of_sources = Agreements(sources=bad, variations=bad).warning
    assert of_sources is not None
    assert "200 synthesized images, and chance is" in of_sources
    assert "raise synthesize.steps" in of_sources
    whole = Agreements.of(rows) + Agreements.of(rows)
    assert whole.sources.images == 2 * int((rows.parents < 0).sum())
    assert whole.variations.images == 2 * int((rows.parents >= 0).sum())
    never = replace(rows, teacher_top1=(rows.labels + 1) % 3)
    assert Agreements.of(never).variations.agreeing == 0
