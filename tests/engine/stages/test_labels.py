"""Labels of batches: balanced or weighted, a function of seed and number; the warning of missing classes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.errors import UserError
from engine.recipes.load import load_recipe
from engine.stages.labels import (
    MORE_SHARDS,
    batch_labels,
    classes_covered,
    coverage_warning,
    planned_coverage,
)

SIZES = [(1000, 64), (1000, 200), (3, 4), (4, 4), (10, 128), (997, 64), (5, 1)]


def labels(first: int, last: int, num_classes: int, batch_size: int, **options: object) -> list[Tensor]:
    """Return the labels of the batches from `first` up to but not including `last`."""
    settings = {"batch_size": batch_size, "num_classes": num_classes, "seed": 0, **options}
    return [batch_labels(number, **settings) for number in range(first, last)]


def spread(batches: list[Tensor], num_classes: int) -> int:
    counts = torch.cat(batches).bincount(minlength=num_classes)
    return int(counts.max() - counts.min())


@pytest.mark.parametrize(("classes", "size"), SIZES)
def test_classes_are_balanced_within_and_over_batches(classes: int, size: int) -> None:
    batches = labels(0, 40, classes, size)
    assert all(batch.shape == (size,) for batch in batches)
    for count in range(1, 41):
        assert spread(batches[count - 1 : count], classes) <= 1
        assert spread(batches[:count], classes) <= 1
        covered = len(torch.cat(batches[:count]).unique())
        assert covered == classes_covered(count, batch_size=size, num_classes=classes, seed=0)
    assert spread(batches[7:33], classes) <= 2


def test_a_thousand_classes_at_batch_64_come_twice_in_32_batches() -> None:
    counts = torch.cat(labels(0, 32, 1000, 64)).bincount(minlength=1000)
    assert {2, 3} == set(counts.tolist())


def test_the_seed_decides_the_order() -> None:
    one, same, other = (torch.cat(labels(0, 4, 50, 8, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_later_rounds_have_another_order() -> None:
    assert not torch.equal(*labels(0, 2, 100, 100))


def test_weights_give_each_class_its_share() -> None:
    weights = [1.0, 2.0, 0.0, 5.0, 0.01]
    found = torch.cat(labels(0, 500, 5, 8, weights=weights)).bincount(minlength=5)
    expected = torch.tensor(weights) / sum(weights) * 4000
    assert found[2] == 0
    assert (found - expected).abs().max() < 4
    later = torch.cat(labels(200, 300, 5, 8, weights=weights)).bincount(minlength=5)
    assert (later - expected / 5).abs().max() < 4


def test_rare_classes_are_counted_when_they_come() -> None:
    weights = [1.0, 0.01, 0.0]
    for batches in (1, 100):
        seen = torch.cat(labels(0, batches, 3, 4, weights=weights)).unique()
        assert classes_covered(batches, batch_size=4, num_classes=3, seed=0, weights=weights) == len(seen)


def test_the_warm_up_batch_has_labels() -> None:
    assert spread(labels(-1, 0, 3, 4), 3) == 1
    assert labels(-1, 0, 3, 4, weights=[1.0, 0.0, 1.0])[0].unique().tolist() == [0, 2]


def test_all_classes(recipe: Path) -> None:
    assert planned_coverage(load_recipe(str(recipe)), 2, MORE_SHARDS) == (
        "classes: all 3 get images, 4.0 synthesized each on average"
    )
    assert coverage_warning(load_recipe(str(recipe)), 2, MORE_SHARDS) is None


def test_missing_classes_and_how_many_batches_would_do(recipe: Path) -> None:
    small = load_recipe(str(recipe), {"synthesize.batch_size": 2})
    assert coverage_warning(small, 1, MORE_SHARDS) == (
        "2 synthesized images cover 2 of 3 classes, and the student learns nothing of the others;"
        " give more --shards (2 batches cover all)"
    )
    assert coverage_warning(small, 2, MORE_SHARDS) is None


def test_weights_by_class_name(recipe: Path) -> None:
    plain = load_recipe(str(recipe))
    first, second, _ = plain.class_names
    weighted = load_recipe(str(recipe), {"synthesize.class_weights": {first: 3, second: 0}})
    assert weighted.class_weights == (3.0, 0.0, 1.0)
    assert plain.class_weights is None
    assert planned_coverage(weighted, 2, MORE_SHARDS).endswith("each on average (1 of weight 0 get none)")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"nothing like it": 1.0},
            "synthesize.class_weights: no class 'nothing like it'; give names of class_names",
        ),
        ({"0": -1.0}, "synthesize.class_weights: '0' has -1.0; give 0 or more"),
        ("many", "synthesize.class_weights must be a mapping of names, each to a number or null, got 'many'"),
    ],
)
def test_weights_that_cannot_be_meant(recipe: Path, weights: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(str(recipe), {"synthesize.class_weights": weights})


def test_weights_whose_names_yaml_reads_as_numbers_or_that_differ_too_much(recipe: Path) -> None:
    plain = load_recipe(str(recipe))
    first, second, _ = plain.class_names
    for weights, message in (
        ({0: 3.0}, "synthesize.class_weights: 0 is not text; write the class in quotes"),
        ({first: 1e308, second: 1e308}, "1e\\+308 is more than 1,000,000 times another class's 1;"),
    ):
        with pytest.raises(UserError, match=message):
            replace(plain, synthesize=replace(plain.synthesize, class_weights=weights))


def test_weights_that_leave_no_class(recipe: Path) -> None:
    names = load_recipe(str(recipe)).class_names
    with pytest.raises(UserError, match=r"synthesize.class_weights leaves no class"):
        load_recipe(str(recipe), {"synthesize.class_weights": dict.fromkeys(names, 0)})
