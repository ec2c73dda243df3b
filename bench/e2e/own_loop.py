"""An arm of the engine's loop: its counts for a number of seconds, and its run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from bench.clock import MOMENTS, Clock
from bench.e2e.arms import OwnArm
from engine.config.recipe import Recipe
from engine.config.schedule import ScheduleConfig, Synthesis, Training
from engine.loop import open_loop
from engine.networks import LoadedPair
from engine.progress import Progress
from engine.training.run_folder import CHECKPOINTS

CALIBRATION = ScheduleConfig(init_batches=2, rounds=2, batches_per_round=1, kd_steps=50, checkpoint_steps=25)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of work of the loop, and how long it took."""

    work: Synthesis | Training
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds per batch of images, per training step, and of everything that does not depend on counts."""

    batch: float
    """Before the first round."""
    hard_batch: float
    """In a round, with the adversary."""
    step: float
    fixed: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What an arm leaves behind."""

    pair: LoadedPair
    accelerator: Accelerator
    images: int
    steps: int
    pieces: Sequence[Piece] = ()


def run(recipe: Recipe, arm: OwnArm, folder: Path, clock: Clock) -> Trained:
    """Run the recipe in an empty folder, with a checkpoint after each piece of work, as `engine.loop.run`."""
    pieces = []
    with Progress() as progress, open_loop(recipe, folder, resume=False, progress=progress) as loop:
        if arm.makes is not None:
            loop.generator = arm.makes(recipe, loop.networks, loop.accelerator, progress)
        while (work := recipe.schedule.next(loop.batches, loop.trainer.step)) is not None:
            start = clock.elapsed
            loop.do(work)
            loop.save(folder / CHECKPOINTS)
            pieces.append(Piece(work=work, seconds=clock.elapsed - start))
            if isinstance(work, Training):
                clock.keep(loop.networks.student)
        clock.stop(loop.networks.student)
        return Trained(
            pair=loop.networks,
            accelerator=loop.accelerator,
            images=len(loop.trainer.index),
            steps=loop.trainer.step,
            pieces=pieces,
        )


def calibrate(recipe: Recipe, arm: OwnArm, folder: Path) -> Costs:
    """Return the costs of the recipe on this machine, from a short run in an empty folder."""
    clock = Clock(seconds=1.0)
    trained = run(with_schedule(recipe, CALIBRATION), arm, folder, clock)
    return costs_of(trained.pieces, clock.snapshots[-1].seconds)


def costs_of(pieces: Sequence[Piece], wall_seconds: float) -> Costs:
    """Return the costs of a run of CALIBRATION.

    What the first batch and the first steps take longer than the later ones is preparation, a fixed cost.
    """
    images = [piece.seconds for piece in pieces if isinstance(piece.work, Synthesis)]
    training = [(piece.work.steps, piece.seconds) for piece in pieces if isinstance(piece.work, Training)]
    init = CALIBRATION.init_batches
    batch, hard_batch = _mean(images[1:init]), _mean(images[init:])
    step = sum(seconds for _, seconds in training[1:]) / sum(steps for steps, _ in training[1:])
    by_counts = init * batch + (len(images) - init) * hard_batch + step * sum(steps for steps, _ in training)
    return Costs(batch=batch, hard_batch=hard_batch, step=step, fixed=max(wall_seconds - by_counts, 0.0))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def allot(recipe: Recipe, arm: OwnArm, costs: Costs, seconds: float) -> ScheduleConfig:
    """Return the schedule that takes `seconds` in total; the number of rounds stays as in the recipe."""
    free, rounds = max(seconds - costs.fixed, 0.0), recipe.schedule.rounds
    if arm.batches is not None:
        init_batches, per_round = arm.batches, 0
    else:
        per_batch = (costs.batch + costs.hard_batch) / 2
        total = max(1, round(arm.image_share * free / per_batch))
        per_round = total // (2 * rounds)
        init_batches = total - rounds * per_round
    left = free - init_batches * costs.batch - rounds * per_round * costs.hard_batch
    return ScheduleConfig(
        init_batches=init_batches,
        rounds=rounds,
        batches_per_round=per_round,
        kd_steps=max(1, round(left / costs.step / rounds)),
    )


def with_schedule(recipe: Recipe, schedule: ScheduleConfig) -> Recipe:
    """Return the recipe with the schedule, and with pauses for copies of the student.

    A warm-up that is longer than half of the training is cut to that.
    """
    steps = schedule.total_kd_steps
    pause = min(max(1, steps // (2 * MOMENTS)), schedule.checkpoint_steps)
    warmup = min(recipe.distill.warmup_steps, steps // 2)
    return replace(
        recipe,
        schedule=replace(schedule, checkpoint_steps=pause),
        distill=replace(recipe.distill, warmup_steps=warmup),
    )
