"""The shipped recipes, with few images and steps."""

from pathlib import Path
from typing import get_args

import pytest

from engine import recipes
from engine.config.methods import Name
from engine.recipes.load import load_recipe
from tests.loop_runs import OFTEN, run, run_until, same_student

FEW = {
    "compute.runtime": "torch",
    "schedule.init_batches": 1,
    "schedule.rounds": 2,
    "schedule.batches_per_round": 1,
    "schedule.kd_steps": 3,
    "synthesize.batch_size": 16,
    "synthesize.steps": 2,
    "synthesize.warmup_steps": 1,
    "augment.variations": 2,
    "distill.batch_size": 16,
    "distill.warmup_steps": 1,
    "evaluate.data": "null",
}
ARGUMENTS = [part for name, value in FEW.items() for part in (f"--{name}", str(value))]


@pytest.mark.parametrize("method", get_args(Name))
def test_every_method_has_a_recipe(method: str) -> None:
    assert load_recipe("prior-free" if method == "dda" else method).synthesize.method == method


@pytest.mark.parametrize("name", recipes.names())
def test_a_shipped_recipe_trains_a_student_and_resumes_exactly(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(name, tmp_path / "whole", *ARGUMENTS)
    assert whole["images_synthesized"] == 3 * 16
    assert run_until(3, name, tmp_path / "cut", monkeypatch, *ARGUMENTS) == 130
    resumed = run(name, tmp_path / "cut", *ARGUMENTS, *OFTEN, "--resume")
    assert resumed["images_sha256"] == whole["images_sha256"]
    assert same_student(tmp_path / "whole", tmp_path / "cut")
