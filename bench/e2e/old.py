"""Compare arms of the loop at equal wall-clock time: synthesis, plus diffusion, CLIP filter and class gate.

Every arm is the default recipe with some parts removed. A short calibration run measures the cost of each
stage; then each arm gets the same number of seconds, half for images and half for the student. The extra arm
`no-prior` has the counts of the default recipe without any prior, and does not use the time it saves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.rows import Row, commit
from engine.cli.resolve import resolve
from engine.config.recipe import Recipe
from engine.config.schedule import ScheduleConfig
from engine.errors import UserError
from engine.loop import run
from engine.progress import Progress
from engine.recipes.load import load_recipe
from engine.training.summary import Summary

NO_PRIOR = {"augment.method": "none", "filter.method": "none", "filter.class_gate": False}
NO_FILTER = {"filter.method": "none", "filter.class_gate": False}
ARMS: dict[str, dict[str, Any]] = {
    "synthesis": NO_PRIOR,
    "diffusion": NO_FILTER,
    "diffusion+clip": {"filter.class_gate": False},
    "diffusion+clip+class": {},
    "no-prior": NO_PRIOR,
}
IMAGE_SHARE = 0.5
CALIBRATION = ScheduleConfig(init_batches=1, rounds=3, batches_per_round=1, kd_steps=20)


@dataclass(frozen=True, kw_only=True)
class Arm:
    name: str
    schedule: ScheduleConfig
    summary: Summary


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds per batch in each stage, per student step, and of everything that does not depend on counts."""

    synthesize: float
    augment: float
    filter: float
    step: float
    fixed: float


def measure(names: Sequence[str], seconds: float, out: Path) -> Iterator[Arm]:
    """Run the arms one after the other into folders of `out`, and yield each when it ends.

    Raises UserError if `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty; choose an empty or new folder")
    costs = calibrate(_recipe("diffusion+clip+class"), out / "calibration")
    for name in names:
        recipe = _recipe(name)
        if name != "no-prior":
            recipe = replace(recipe, schedule=allot(recipe, costs, seconds))
        with Progress() as progress:
            summary = run(recipe, out / name, resume=False, progress=progress)
        yield Arm(name=name, schedule=recipe.schedule, summary=summary)


def _recipe(arm: str) -> Recipe:
    recipe = load_recipe("fashion-mnist", ARMS[arm])
    return replace(resolve(recipe), name=arm)


def calibrate(recipe: Recipe, out: Path) -> Costs:
    """Measure the cost of the full recipe's stages on this machine, with a run of CALIBRATION."""
    with Progress() as progress:
        summary = run(replace(recipe, schedule=CALIBRATION), out, resume=False, progress=progress)
    return costs_of(recipe, summary.seconds_by_stage, summary.wall_seconds)


def costs_of(recipe: Recipe, spent: dict[str, float], wall_seconds: float) -> Costs:
    """Return the costs of a CALIBRATION run that spent `spent` seconds per stage; warm-up is a fixed cost."""
    first, batches = recipe.synthesize.first_steps, CALIBRATION.total_batches
    warmup = spent["synthesize"] * first / (first + batches * recipe.synthesize.chosen.steps)
    stages = ("synthesize", "augment", "filter", "distill")
    return Costs(
        synthesize=(spent["synthesize"] - warmup) / batches,
        augment=spent["augment"] / batches,
        filter=spent["filter"] / batches,
        step=spent["distill"] / CALIBRATION.total_kd_steps,
        fixed=wall_seconds - sum(spent[stage] for stage in stages) + warmup,
    )


def allot(recipe: Recipe, costs: Costs, seconds: float) -> ScheduleConfig:
    """Return the schedule that takes `seconds` in total, with IMAGE_SHARE of the free time spent on images.

    The number of rounds stays as in the recipe.
    """
    seconds_per_batch = costs.synthesize
    if recipe.augment.method != "none":
        seconds_per_batch += costs.augment + costs.filter
    free, rounds = max(seconds - costs.fixed, 0.0), recipe.schedule.rounds
    total_batches = max(1, round(IMAGE_SHARE * free / seconds_per_batch))
    per_round = total_batches // (2 * rounds)
    return ScheduleConfig(
        init_batches=total_batches - rounds * per_round,
        rounds=rounds,
        batches_per_round=per_round,
        kd_steps=max(1, round((1 - IMAGE_SHARE) * free / costs.step / rounds)),
    )


def table(arms: list[Arm]) -> str:
    """Return a Markdown table with a line per arm."""
    lines = [
        "| arm | wall s | sources | variations | accepted | KD steps | teacher agrees: sources / all / kept "
        "| filter's CLIP agrees | CLIP distance | student top-1 | student = teacher |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        s, agrees = arm.summary, arm.summary.label_agreement
        cells = [
            arm.name,
            f"{s.wall_seconds:.0f}",
            str(s.images_synthesized),
            str(s.images_augmented),
            str(s.images_accepted),
            str(arm.schedule.total_kd_steps),
            " / ".join(_percent(agrees[of]) for of in ("sources", "before", "after")),
            _percent(s.clip_agreement),
            "-" if s.mean_pairwise_clip_distance is None else f"{s.mean_pairwise_clip_distance:.3f}",
            _percent(s.student_top1),
            _percent(s.agreement),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def rows(arms: list[Arm]) -> list[Row]:
    """Return each arm's accuracy against the first arm's. Empty without a test set."""
    first = arms[0].summary.student_top1
    if first is None:
        return []
    return [
        Row(
            case=f"e2e/{arm.name}",
            baseline=arms[0].name,
            ours=arm.summary.student_top1,
            theirs=first,
            unit="top-1",
            ratio=arm.summary.student_top1 / first,
            floor=None,
            device=arm.summary.device,
            dtype=arm.summary.precision,
            shape=f"{arm.summary.wall_seconds:.0f} s",
            commit=commit(),
        )
        for arm in arms
        if arm.summary.student_top1 is not None
    ]
