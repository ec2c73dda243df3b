"""Classes that a generation leaves out are said before, in the plan, and of the bank."""

from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import UserError
from engine.recipes.load import load_recipe
from engine.stages.labels import MORE_SHARDS, coverage_warning, planned_coverage


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
