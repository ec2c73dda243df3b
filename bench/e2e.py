"""The loop's arms at equal wall-clock: synthesis alone, then diffusion, CLIP filter and class gate added.

Every arm is the default recipe with a part taken out. A short run of the whole measures what the stages cost;
then each arm gets the same seconds, half of them for images and half for the student. `no-prior` is beside
them: the default recipe's own counts, without any prior and without filling the time saved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.rows import Row, commit
from engine.compute import resolved
from engine.errors import UserError
from engine.loop import run
from engine.progress import Progress
from engine.recipe import Recipe, load_recipe
from engine.schedule import ScheduleConfig
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
    """Seconds of a batch in each of its stages, of a student step, and of all that no count changes."""

    synthesize: float
    augment: float
    filter: float
    step: float
    fixed: float


def measure(names: Sequence[str], seconds: float, out: Path) -> Iterator[Arm]:
    """Runs the arms one after the other into folders of `out`.

    Each is yielded as it ends. Raises UserError where `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty; give a folder for these runs alone")
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
    return replace(recipe, name=arm, compute=resolved(recipe.compute))


def calibrate(recipe: Recipe, out: Path) -> Costs:
    """What the stages of the whole recipe cost on this machine, from a run of CALIBRATION."""
    with Progress() as progress:
        summary = run(replace(recipe, schedule=CALIBRATION), out, resume=False, progress=progress)
    return costs_of(recipe, summary.seconds_by_stage, summary.wall_seconds)


def costs_of(recipe: Recipe, spent: dict[str, float], wall_seconds: float) -> Costs:
    """The costs in a CALIBRATION run that `spent` so much in each stage; the generator's warm-up is fixed."""
    config, batches = recipe.synthesize, CALIBRATION.total_batches
    warmup = spent["synthesize"] * config.warmup_steps / (config.warmup_steps + batches * config.steps)
    stages = ("synthesize", "augment", "filter", "distill")
    return Costs(
        synthesize=(spent["synthesize"] - warmup) / batches,
        augment=spent["augment"] / batches,
        filter=spent["filter"] / batches,
        step=spent["distill"] / CALIBRATION.total_kd_steps,
        fixed=wall_seconds - sum(spent[stage] for stage in stages) + warmup,
    )


def allot(recipe: Recipe, costs: Costs, seconds: float) -> ScheduleConfig:
    """The schedule that takes `seconds` in all: of what is not fixed, IMAGE_SHARE goes to images.

    The rounds stay the recipe's.
    """
    a_batch = costs.synthesize
    if recipe.augment.method != "none":
        a_batch += costs.augment + costs.filter
    free, rounds = max(seconds - costs.fixed, 0.0), recipe.schedule.rounds
    total_batches = max(1, round(IMAGE_SHARE * free / a_batch))
    per_round = total_batches // (2 * rounds)
    return ScheduleConfig(
        init_batches=total_batches - rounds * per_round,
        rounds=rounds,
        batches_per_round=per_round,
        kd_steps=max(1, round((1 - IMAGE_SHARE) * free / costs.step / rounds)),
    )


def table(arms: list[Arm]) -> str:
    """Markdown, one line an arm."""
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
    """Each arm's accuracy beside that of the first one; none where there is no test set."""
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
