"""`augment.method: auto` uses a prior whose variations the teacher recognizes, and skips another."""

from pathlib import Path

import numpy as np
import pytest

from engine.bank.agreement import Agreement, Agreements
from engine.cli.resolve import resolve
from engine.generation.prior_fit import is_fitting
from engine.recipes.load import load_recipe


def agreement(share: float, *, each: int = 40, classes: int = 10) -> Agreement:
    """Return the agreement of balanced labels with predictions of which `share` are right in each class."""
    labels = np.repeat(np.arange(classes), each)
    position = np.tile(np.arange(each), classes)
    others = (labels + 1 + position % (classes - 1)) % classes
    return Agreement.of(labels, np.where(position < round(share * each), labels, others))


@pytest.mark.parametrize(
    ("sources", "variations", "fits"),
    [
        (0.62, 0.72, True),  # clothes and a prior of clothes
        (0.56, 0.137, False),  # digits and a prior of clothes
        (0.95, 0.40, True),
        (0.95, 0.25, False),
        (0.11, 0.10, True),  # the sources themselves say nothing yet
    ],
)
def test_variations_must_keep_a_part_of_what_the_sources_show(
    sources: float, variations: float, fits: bool
) -> None:
    found = Agreements(sources=agreement(sources), variations=agreement(variations))
    assert is_fitting(found) is fits


def test_a_prior_is_tried_before_the_run_and_the_decision_is_in_the_recipe(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = load_recipe(str(recipe), {"augment.method": "auto", "synthesize.batch_size": 40})
    assert given.augment.method == "auto"
    for fits, method in ((True, "variation"), (False, "none")):
        monkeypatch.setattr("engine.generation.prior_fit.is_fitting", lambda _, fits=fits: fits)
        resolved = resolve(given)
        assert resolved.augment.method == method
        assert resolved.augment.variations == given.augment.variations
        assert resolved.uses_clip is fits


def test_without_a_prior_there_is_nothing_to_try(recipe: Path) -> None:
    given = load_recipe(
        str(recipe), {"augment.method": "auto", "augment.prior": "", "augment.class_condition": "none"}
    )
    assert given.augment.method == "none"
