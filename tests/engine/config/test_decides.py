"""The effects that the fields of a recipe declare, against lists written by hand."""

from typing import Any

import pytest

from engine import recipes
from engine.cli.arguments import command_parser
from engine.config.decides import sections, settings
from engine.config.recipe import OF_MACHINE_SECTIONS, Recipe
from engine.exporting.command import MAY_DIFFER
from engine.generation.provenance import DECIDING, DECIDING_COMPUTE
from engine.recipes.load import Layer, add_recipe
from engine.training.run_folder import MACHINE_SETTINGS, without_machine

NUMBERS = {"precision", "runtime_precision", "kernels", "compile"}
IMAGES = {*NUMBERS, "device", "runtime", "onnx_provider", "threads", "overlap"}
COMPUTE = {*IMAGES, "engines", "engines_gb", "cuda_graphs", "share_cores"}
TENSORRT = {"workspace_gb", "refit", "compute_capabilities"}


def keys(section: str, *names: str) -> set[str]:
    return {f"{section}.{name}:" for name in names}


def test_the_settings_hash_of_a_bank_covers_what_decides_images() -> None:
    whole = {"seed", "class_names", "teacher", "synthesize", "augment", "filter", "storage"}
    assert set(DECIDING) == whole
    assert set(DECIDING_COMPUTE) == IMAGES


def test_a_student_trained_on_a_bank_depends_on_the_rest() -> None:
    assert OF_MACHINE_SECTIONS == ("compute", "tensorrt", "feed")
    training = {"class_names", "teacher", "student", "schedule", "distill", "evaluate"}
    assert set(sections(Recipe, "student")) == training


def test_how_to_compute_may_differ_on_another_machine() -> None:
    machine = keys("compute", *COMPUTE) | keys("tensorrt", *TENSORRT) | keys("feed", "kind", "threads")
    assert set(MACHINE_SETTINGS) == machine
    exported = {
        "feed.dtype:",
        "feed.newest:",
        "augment.micro_batch:",
        "filter.micro_batch:",
        "evaluate.root:",
    }
    assert set(MAY_DIFFER) == machine | exported


def test_settings_without_the_machine_keep_what_rounds_numbers() -> None:
    given: dict[str, Any] = {"seed": 3, "distill": {"lr": 0.1}}
    for key in settings(Recipe):
        section, _, name = key.partition(".")
        if section in OF_MACHINE_SECTIONS:
            given.setdefault(section, {})[name] = key
    kept = without_machine(given)
    assert (kept["seed"], kept["distill"]) == (3, {"lr": 0.1})
    assert set(kept["compute"]) == NUMBERS
    assert set(kept["feed"]) == {"dtype", "newest"}
    assert not kept["tensorrt"]


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--compute.device", "Device that the networks run on"),
        ("--augment.micro_batch", "Variations made at once"),
    ],
)
def test_help_shows_the_text_of_a_field_with_metadata(flag: str, text: str) -> None:
    parser = command_parser("engine.run", None)
    add_recipe(parser, Layer.of(recipes.read("fashion-mnist"), "fashion-mnist"))
    (action,) = [each for each in parser._actions if flag in each.option_strings]
    assert action.help is not None
    assert action.help.startswith(text)
