"""What settings decide of one another: the student follows the teacher, and stages without a model go."""

from dataclasses import replace
from typing import Any

import pytest

from engine.config.augment import AugmentConfig
from engine.config.classifier import ClassifierConfig
from engine.config.filter import FilterConfig
from engine.config.recipe import Recipe, derived
from engine.errors import UserError

RGB = {"mean": (0.2, 0.4, 0.6), "std": (0.1, 0.2, 0.3)}
TEACHER = ClassifierConfig(
    name="timm:resnet18", num_classes=7, in_channels=3, image_size=(20, 30), output=1, feature="layer4", **RGB
)


def student_of(teacher: ClassifierConfig = TEACHER, **fields: Any) -> ClassifierConfig:
    return derived(Recipe(name="any", teacher=teacher, student=ClassifierConfig(**fields))).student


def test_the_student_follows_the_teacher_in_what_both_see() -> None:
    student = student_of(name="timm:resnet10t")
    assert student == replace(TEACHER, name="timm:resnet10t", output=None, feature=None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"mean": (0.5,), "std": (0.25,)}, (3, (0.5,), (0.25,))),
        ({"mean": (0.5,)}, (3, (0.5,), RGB["std"])),
        ({"in_channels": 1}, (1, (0.4,), (0.2,))),
        ({"in_channels": 2}, (2, (0.4,) * 2, (0.2,) * 2)),
        ({"in_channels": 4}, (4, (0.2, 0.4, 0.6, 0.6), (0.1, 0.2, 0.3, 0.3))),
        ({"in_channels": 1, "std": (0.5,)}, (1, (0.4,), (0.5,))),
    ],
)
def test_the_students_own_values_win(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    student = student_of(**fields)
    assert student.in_channels == expected[0]
    assert student.mean == pytest.approx(expected[1])
    assert student.std == pytest.approx(expected[2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 9}, r"student\.num_classes is 9, but teacher\.num_classes is 7"),
        ({"image_size": 20}, r"student\.image_size is 20x20, but teacher\.image_size is 20x30"),
    ],
)
def test_other_classes_or_images_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        student_of(**fields)
    assert student_of(image_size=[20, 30]).size == (20, 30), "a list is as good"


def test_what_the_teacher_leaves_open_stays_open() -> None:
    teacher = ClassifierConfig(name="timm:resnet18")
    assert student_of(teacher, name="x") == ClassifierConfig(name="x")
    with_mean = replace(teacher, **RGB)
    assert student_of(with_mean) == ClassifierConfig(), "its channels, which mean and std depend on, are open"
    assert student_of(with_mean, in_channels=1).mean == pytest.approx([0.4])


def test_it_is_settled_after_one_pass() -> None:
    once = derived(Recipe(name="any", teacher=TEACHER))
    assert derived(once) == once


@pytest.mark.parametrize(
    ("augment", "chosen", "methods"),
    [
        ({}, {}, ("none", "none")),
        ({"prior": "folder"}, {}, ("auto", "none")),
        ({"method": "variation", "prior": "folder"}, {"model": "x", "omega": 0.5}, ("variation", "clip")),
        ({"method": "none"}, {"method": "none", "model": "x"}, ("none", "none")),
    ],
)
def test_a_stage_without_a_model_is_left_out(
    augment: dict[str, Any], chosen: dict[str, Any], methods: tuple[str, str]
) -> None:
    given = Recipe(
        name="any", teacher=TEACHER, augment=AugmentConfig(**augment), filter=FilterConfig(**chosen)
    )
    found = derived(given)
    assert (found.augment.method, found.filter.method) == methods
