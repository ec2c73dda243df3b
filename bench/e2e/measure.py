"""Measure arms and seeds one after the other; what has been finished is not measured again."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.calls import as_published
from bench.clock import Clock
from bench.e2e import own_loop, results
from bench.e2e.arms import ARMS, Arm, OwnArm, PublishedArm
from bench.e2e.own_loop import Costs, Trained
from bench.e2e.results import Result
from bench.published.memory import PublishedPair
from engine import networks
from engine.atomic import replacing
from engine.config.recipe import Recipe
from engine.distributed import open_accelerator
from engine.errors import UserError
from engine.seeding import derive_seed

RUN, STUDENTS, COSTS = "run", "students.pt", "costs.json"


def measure(
    names: Sequence[str],
    seeds: Sequence[int],
    seconds: float,
    out: Path,
    *,
    resume: bool = False,
    arms: Mapping[str, Arm] = ARMS,
) -> Iterator[Result]:
    """Yield the result of each arm with each seed, seed by seed, so that a slow hour affects all arms.

    Each has a folder in `out`. With `resume`, the finished ones are read, and the others start again.
    Raises UserError if `out` is not empty without `resume`, or there is no test set.
    """
    if out.exists() and any(out.iterdir()) and not resume:
        raise UserError(f"--out {out} is not empty; continue with --resume, or choose an empty or new folder")
    for name in names:
        results.require_test_set(arms[name].load(name, seeds[0]))
    for seed in seeds:
        for name in names:
            folder = out / name / f"seed-{seed}"
            yield results.finished(folder, seconds) or _measured(name, arms[name], seed, seconds, folder)


def _measured(name: str, arm: Arm, seed: int, seconds: float, folder: Path) -> Result:
    shutil.rmtree(folder, ignore_errors=True)
    recipe = arm.load(name, seed)
    networks.load(recipe, open_accelerator(recipe.compute).device)  # imports and reads files before the clock
    if isinstance(arm, OwnArm):
        costs = None if arm.keeps_counts else _costs(recipe, arm, folder.parent)
        schedule = recipe.schedule if costs is None else own_loop.allot(recipe, arm, costs, seconds)
        recipe = own_loop.with_schedule(recipe, schedule)
        precision, clock = recipe.compute.precision, Clock(seconds=seconds)
        trained = own_loop.run(recipe, arm, folder / RUN, clock)
    else:
        assert isinstance(arm, PublishedArm)
        precision, clock = "fp32", Clock(seconds=seconds)
        trained = as_published(_published)(recipe, arm, clock)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save([asdict(snapshot) for snapshot in clock.snapshots], folder / STUDENTS)
    result = results.evaluated(recipe, seconds, trained, clock.snapshots, precision)
    shutil.rmtree(folder / RUN, ignore_errors=True)
    result.write(folder)
    return result


def _costs(recipe: Recipe, arm: OwnArm, folder: Path) -> Costs:
    """Return the costs of an arm, which are measured once for all seeds."""
    file, run = folder / COSTS, folder / "calibration"
    if file.is_file():
        return Costs(**json.loads(file.read_text(encoding="utf-8")))
    shutil.rmtree(run, ignore_errors=True)
    costs = own_loop.calibrate(recipe, arm, run)
    shutil.rmtree(run)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(asdict(costs)) + "\n", encoding="utf-8")
    return costs


def _published(recipe: Recipe, arm: PublishedArm, clock: Clock) -> Trained:
    accelerator = open_accelerator(recipe.compute)
    pair = networks.load_pair(recipe, accelerator.device)
    torch.manual_seed(derive_seed(recipe.seed, "published"))
    images, steps = arm.loop(
        PublishedPair.of(pair.teacher, pair.student, recipe.teacher.size), clock, recipe.seed
    )
    clock.stop(pair.student)
    return Trained(pair=pair, accelerator=accelerator, images=images, steps=steps)
