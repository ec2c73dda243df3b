"""The arms of the end-to-end bench: their recipes, the seconds they are given, and what is reported."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import e2e
from bench.__main__ import command
from bench.rows import write_rows
from engine.cli import main
from engine.recipe import load_recipe
from engine.training.summary import Summary

SUMMARY = Summary(
    recipe="x",
    seed=0,
    device="cpu",
    runtime="torch",
    precision="bf16",
    teacher_top1=0.93,
    student_top1=0.6,
    agreement=0.61,
    accuracy_reason=None,
    images_synthesized=10,
    images_augmented=20,
    images_accepted=15,
    acceptance_rate=0.75,
    label_agreement={"sources": 0.9, "before": 0.5, "after_clip": None, "after": 1.0},
    clip_agreement=0.4,
    mean_pairwise_clip_distance=0.3,
    seconds_by_stage={},
    images_per_second=1.0,
    wall_seconds=240.4,
    images_sha256="0",
)


@pytest.mark.parametrize("name", e2e.ARMS)
def test_arms_are_the_default_recipe_with_parts_taken_out(name: str) -> None:
    default, arm = load_recipe("fashion-mnist"), load_recipe("fashion-mnist", e2e.ARMS[name])
    assert arm.synthesize == default.synthesize
    assert arm.distill == default.distill
    assert (arm.augment.method == "none") == (name in ("synthesis", "no-prior"))
    assert (arm.filter.method == "clip") == ("clip" in name)
    assert arm.filter.class_gate == ("class" in name)
    assert arm.filter.model, "every arm is measured by CLIP, filtered or not"


@pytest.mark.parametrize("arm", ["synthesis", "diffusion+clip+class"])
@pytest.mark.parametrize("seconds", [120.0, 900.0])
def test_an_arm_is_given_its_seconds_half_for_images(arm: str, seconds: float) -> None:
    recipe = load_recipe(
        "fashion-mnist", {"synthesize.warmup_steps": 30, "synthesize.steps": 10, **e2e.ARMS[arm]}
    )
    batches, steps = e2e.CALIBRATION.total_batches, e2e.CALIBRATION.total_kd_steps
    spent = {
        "synthesize": 0.1 * (30 + 10 * batches),
        "augment": 2.0 * batches,
        "filter": 0.5 * batches,
        "distill": 0.25 * steps,
        "evaluate": 3.0,
    }
    costs = e2e.costs_of(recipe, spent, sum(spent.values()) + 7)
    fixed = 3.0 + 7 + 3  # evaluation, loading, warm-up
    assert costs.fixed == pytest.approx(fixed)
    schedule = e2e.allot(recipe, costs, seconds)
    images = schedule.total_batches * (1.0 if arm == "synthesis" else 3.5)
    assert fixed + images + 0.25 * schedule.total_kd_steps == pytest.approx(seconds, rel=0.03)
    assert images == pytest.approx((seconds - fixed) / 2, rel=0.05)
    assert schedule.rounds == recipe.schedule.rounds


def test_no_time_left_still_gives_a_schedule() -> None:
    costs = e2e.Costs(synthesize=1, augment=1, filter=1, step=1, fixed=60)
    assert e2e.allot(load_recipe("fashion-mnist"), costs, 5.0).total_batches == 1


def test_rows_are_ratios_to_the_first_arm(tmp_path: Path) -> None:
    schedule = e2e.CALIBRATION
    better = replace(SUMMARY, student_top1=0.9)
    arms = [
        e2e.Arm(name="synthesis", schedule=schedule, summary=SUMMARY),
        e2e.Arm(name="diffusion", schedule=schedule, summary=better),
    ]
    write_rows(tmp_path / "rows.json", e2e.rows(arms))
    first, second = json.loads((tmp_path / "rows.json").read_text())
    assert (first["case"], first["ratio"]) == ("e2e/synthesis", 1.0)
    assert (second["case"], second["baseline"]) == ("e2e/diffusion", "synthesis")
    assert second["ratio"] == pytest.approx(1.5)
    assert (
        "| diffusion | 240 | 10 | 20 | 15 | 60 | 90.00 % / 50.00 % / 100.00 % | 40.00 % | 0.300 | 90.00 % |"
        in e2e.table(arms)
    )


def test_an_unknown_arm_and_a_used_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command, ["e2e", "--arms", "magic"]) == 2
    assert "--arms: no 'magic'; there are synthesis" in capsys.readouterr().err
    (tmp_path / "x").touch()
    assert main(command, ["e2e", "--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
