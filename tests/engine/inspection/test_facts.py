"""What `engine.inspect` does without for networks that have no feature map."""

import pytest

from engine.config.methods import METHODS
from engine.inspection.facts import _without_missing_maps
from engine.models.loading import load_classifier
from engine.networks import LoadedPair
from engine.recipes.load import load_recipe


@pytest.mark.parametrize("has_map", [True, False])
def test_a_student_without_a_map_gets_the_kl_adversary_at_its_own_weight(has_map: bool) -> None:
    recipe = load_recipe("dda-paper")
    teacher = load_classifier(recipe.teacher, "teacher")
    student = load_classifier(recipe.teacher, "student")
    if not has_map:
        student.feature_path = None
    found = _without_missing_maps(recipe, LoadedPair(teacher=teacher, student=student)).synthesize.chosen
    expected = METHODS["dda-paper"] if has_map else METHODS["cmi"]
    assert (found.adversary, found.w_adv) == (expected.adversary, expected.w_adv)
