"""`--budget`: measure what a run costs on this machine, and choose the counts that fill a given time."""

import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from engine.config.recipe import Recipe
from engine.config.schedule import ScheduleConfig, Synthesis, Training
from engine.errors import UserError
from engine.progress import Progress, clock

if TYPE_CHECKING:
    import torch

    from engine.loop import Loop

logger = logging.getLogger(__name__)

UNITS = {"s": 1, "m": 60, "h": 3600}
TRIAL_STEPS = 5
"""Optimizer steps of a batch that is only timed."""
TRIAL_SHARE = 0.02
"""Share of the budget for which training is timed."""
CHUNK = 6
"""Training steps between two readings of the clock."""
TIMED_CHUNKS = 3
"""Minimum number of readings."""
MEMORY_SHARE = 0.3
"""Share of the free memory for what the teacher keeps of a batch; the generator and gradients need more."""
ENDING = 1.0
"""Seconds for the picture, the summary and the end of the process."""
RESERVE = 0.02
"""Share of the budget that is left for what is not measured."""
IMAGES_SHARE = 0.4
"""Share of the time for making images; the rest trains the student."""
STEPS = (10, 40, 200)
"""Optimizer steps of a batch: the fewest, the usual number, the most."""
BATCHES = (6, 48)
"""With fewer batches than the first number, steps go down to the fewest; above the second, up to the most."""
ROUNDS = 3
HARD_SHARE = 1 / 3
"""Share of the batches that are made with the adversary."""
MIN_KD_STEPS = 30


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds that parts of a run take on this machine."""

    opening: float
    """Loading and opening the networks."""
    synthesis_step: float
    """A step of synthesis."""
    hard_step: float
    """A step of synthesis with the adversary, as in the rounds."""
    batch: float
    """The rest of a batch: variations, filter, commit, checkpoint."""
    kd_step: float
    """A training step."""
    ending: float
    """Evaluation and summary."""


def parse_budget(text: str) -> float:
    """Return the seconds of a budget such as 90s, 10m, 2h or 1h30m. Raises UserError for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise UserError(f"--budget is '{text}'; give a time such as 90s, 10m, 2h or 1h30m")
    return seconds


def fit_to_budget(recipe: Recipe, seconds: float, begun: float) -> Recipe:
    """Return a resolved recipe with the counts that make the whole command take about `seconds`.

    Args:
        begun: time.perf_counter() when the command began; what it has done since counts.

    Raises:
        UserError: if the time is too short for any run.
    """
    logger.info("budget: measuring a short run to fill %s", clock(seconds))
    with _without_log_lines():
        recipe = with_batches(recipe, seconds)
        costs = measure(recipe, seconds)
    left = seconds * (1 - RESERVE) - (time.perf_counter() - begun) - costs.opening - costs.ending
    fitted = fitted_to(recipe, costs, left)
    if fitted is None:
        needed = seconds - left + least(recipe, costs)
        raise UserError(
            f"--budget {clock(seconds)} is too short for this teacher on this machine; give at least "
            f"{clock(needed * 1.05)}"
        )
    schedule = fitted.schedule
    logger.info(
        "budget: %d batches of %d images, %d steps each, and %d training steps in %d rounds",
        schedule.total_batches,
        fitted.synthesize.batch_size,
        fitted.synthesize.steps,
        schedule.total_kd_steps,
        schedule.rounds,
    )
    return fitted


@contextmanager
def _without_log_lines() -> Iterator[None]:
    """Suppress log lines below WARNING, which the run itself will log."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def with_batches(recipe: Recipe, seconds: float) -> Recipe:
    """Return the recipe with batches that are small enough for the time and the memory of this machine."""
    from engine import networks
    from engine.distributed import open_accelerator
    from engine.inspection.timing import per_image
    from engine.models.inverting import choose_statistics

    accelerator = open_accelerator(recipe.compute)
    pair = networks.load_pair(recipe, accelerator.device)
    each = per_image(
        pair, recipe, choose_statistics(pair.teacher, recipe.synthesize.statistics, recipe.teacher.size)
    )
    by_time = TRIAL_SHARE * seconds / TRIAL_STEPS
    by_memory = MEMORY_SHARE * free_memory(accelerator.device) / max(1, each.kept_bytes)
    return replace(
        recipe,
        synthesize=replace(
            recipe.synthesize,
            batch_size=_batch(recipe.synthesize.batch_size, min(by_time / each.synthesis, by_memory)),
        ),
        distill=replace(
            recipe.distill, batch_size=_batch(recipe.distill.batch_size, by_time / each.training)
        ),
    )


def _batch(wanted: int, possible: float) -> int:
    """Return the largest multiple of 8 that is possible, at least 8, and at most what is wanted."""
    return min(wanted, max(8, int(possible) // 8 * 8))


def free_memory(device: "torch.device") -> int:
    """Return the bytes of memory that are free on the device, or on the host for the CPU."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def fitted_to(recipe: Recipe, costs: Costs, seconds: float) -> Recipe | None:
    """Return the recipe with the counts that take `seconds` at these costs, or None if that is too short."""
    if seconds < least(recipe, costs):
        return None
    warm_up = recipe.synthesize.first_steps * costs.synthesis_step
    for_images = max(IMAGES_SHARE * seconds - warm_up, _batch_cost(costs, STEPS[0]) * 2)
    steps = STEPS[1]
    fewest, most = BATCHES
    if for_images < fewest * _batch_cost(costs, steps):
        steps = _within(STEPS[0], _steps_for(costs, for_images / fewest), STEPS[1])
    elif for_images > most * _batch_cost(costs, steps):
        steps = _within(STEPS[1], _steps_for(costs, for_images / most), STEPS[2])
    batches = max(2, int(for_images / _batch_cost(costs, steps)))
    rounds = min(ROUNDS, batches - 1)
    per_round = max(1, batches // (2 * rounds))
    init = batches - rounds * per_round
    hard = (rounds - 1) * per_round  # the first round's batches are made before any training
    used = warm_up + batches * (costs.batch + steps * costs.synthesis_step)
    used += hard * steps * (costs.hard_step - costs.synthesis_step)
    kd_steps = max(MIN_KD_STEPS, int((seconds - used) / costs.kd_step / rounds))
    schedule = replace(
        recipe.schedule, init_batches=init, rounds=rounds, batches_per_round=per_round, kd_steps=kd_steps
    )
    return replace(recipe, schedule=schedule, synthesize=replace(recipe.synthesize, steps=steps))


def least(recipe: Recipe, costs: Costs) -> float:
    """Return the seconds of the shortest run."""
    warm_up = recipe.synthesize.first_steps * costs.synthesis_step
    return warm_up + 2 * _batch_cost(costs, STEPS[0]) + MIN_KD_STEPS * costs.kd_step


def _batch_cost(costs: Costs, steps: int) -> float:
    """Return the seconds of a batch, on average over those with and without the adversary."""
    return costs.batch + steps * _step_cost(costs)


def _step_cost(costs: Costs) -> float:
    return costs.synthesis_step + HARD_SHARE * (costs.hard_step - costs.synthesis_step)


def _steps_for(costs: Costs, seconds: float) -> int:
    return int((seconds - costs.batch) / _step_cost(costs))


def _within(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))


def measure(recipe: Recipe, seconds: float) -> Costs:
    """Run every part of a run for a moment, in a folder that is removed afterwards, and time it."""
    from engine.loop import open_loop

    steps = int(seconds / 1e-3)  # more than can be taken
    schedule = ScheduleConfig(init_batches=3, rounds=2, batches_per_round=1, kd_steps=steps)
    trial = replace(
        recipe,
        schedule=schedule,
        synthesize=replace(recipe.synthesize, steps=TRIAL_STEPS, warmup_steps=1),
    )
    with tempfile.TemporaryDirectory(prefix="budget-") as folder:
        start = time.perf_counter()
        with open_loop(trial, Path(folder, "run"), resume=False, progress=Progress(quiet=True)) as loop:
            opening = time.perf_counter() - start
            return replace(_measured(loop, seconds, Path(folder)), opening=opening)


def _measured(loop: "Loop", seconds: float, folder: Path) -> Costs:
    from engine.training.summary import evaluation_seconds

    loop.do(Synthesis(batch=0))  # memory and kernels are chosen now
    synthesis, batch = _timed_batch(loop, 1)
    training = Training(round=0, first_step=loop.trainer.step, steps=CHUNK)
    loop.do(training)
    chunks: list[float] = []
    end = time.perf_counter() + TRIAL_SHARE * seconds
    while len(chunks) < TIMED_CHUNKS or time.perf_counter() < end:
        chunks.append(_seconds(lambda: loop.do(training)))
    saving = _seconds(lambda: loop.save(folder / "checkpoints"))
    loop.do(Synthesis(batch=2))  # builds the adversary
    hard, _ = _timed_batch(loop, 3)
    return Costs(
        opening=0.0,
        synthesis_step=synthesis,
        hard_step=hard,
        batch=batch + saving,
        kd_step=median(chunks) / CHUNK + saving / loop.recipe.schedule.checkpoint_steps,
        ending=ENDING + evaluation_seconds(loop.recipe, loop.networks, loop.accelerator),
    )


def _timed_batch(loop: "Loop", number: int) -> tuple[float, float]:
    """Return the seconds of a step of synthesis, and those of the rest of the batch."""
    progress = loop.progress
    before = progress.seconds["synthesize"]
    whole = _seconds(lambda: loop.do(Synthesis(batch=number)))
    steps = progress.seconds["synthesize"] - before
    return steps / TRIAL_STEPS, whole - steps


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
