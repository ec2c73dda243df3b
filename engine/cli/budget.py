"""`--budget`: measure what a run costs on this machine, and choose the counts that fill a given time."""

import logging
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from engine.cli.arguments import CommandLine
from engine.cli.resolve import read_networks, resolve_compute
from engine.config.recipe import Recipe
from engine.config.schedule import Synthesis, Training
from engine.datasets.test_set import open_test_set
from engine.errors import UserError
from engine.progress import Progress, clock, counted

if TYPE_CHECKING:
    import torch

    from engine.loop import Loop

logger = logging.getLogger(__name__)

UNITS = {"s": 1, "m": 60, "h": 3600}
TRIAL_STEPS = 5
"""Optimizer steps of a batch that is only timed."""
STEP_SHARE = 0.002
"""Share of the budget that a step may take at most; with smaller batches, steps are shorter."""
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
MARGIN = 1.1
"""A time that is proposed is longer by this factor than what seems to be needed."""
IMAGES_SHARE = 0.4
"""Share of the time for making images; the rest trains the student."""
WARM_UP_SHARE = 0.08
"""Share of the time for the generator's warm-up, at most."""
WARM_UP_STEPS = 5
"""Optimizer steps of the warm-up, at least."""
STEPS = (10, 40, 200)
"""Optimizer steps of a batch: the fewest, the usual number, the most."""
BATCHES = (6, 48)
"""With fewer batches than the first number, steps go down to the fewest; above the second, up to the most."""
ROUNDS = 3
HARD_SHARE = 1 / 3
"""Share of the batches that are made with the adversary."""
MIN_KD_STEPS = 30
"""Training steps of a round, at least; a warm-up of the learning rate may need more."""
TRIED_VARIATIONS = 2
"""Variations of each source in a batch that is only timed."""
GOOD_KD_STEPS = 1000
"""Fewer training steps seldom make a good student."""
COUNTS = (
    "schedule.init_batches",
    "schedule.rounds",
    "schedule.batches_per_round",
    "schedule.kd_steps",
    "synthesize.steps",
)
"""Settings that a budget chooses. It also lowers the sizes of batches if they are too large."""


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


def require_open_counts(line: CommandLine) -> None:
    """Raise UserError if the command line sets a count that the budget chooses. A recipe's are replaced."""
    given = [name for name in COUNTS if line.given(name)]
    if given:
        raise UserError(f"--budget chooses {', '.join(given)}; leave out one or the other")


def begin_budget(recipe: Recipe, seconds: float) -> Recipe:
    """Return the recipe with what its networks decide, and with batches that are small enough for the time.

    Call it before anything is tried. Raises UserError as `resolve` does, and for a wrong test set.
    """
    recipe = read_networks(recipe)
    open_test_set(recipe.evaluate, recipe.names, recipe.teacher.size)
    logger.info("budget: measuring this machine, to fill %s", clock(seconds))
    recipe = replace(recipe, compute=resolve_compute(recipe.compute, recipe.tensorrt))
    with _without_log_lines():
        return with_batches(recipe, seconds)


def as_budget(seconds: float) -> str:
    """Return a time, rounded up, in the form of `parse_budget`."""
    if seconds <= 120:
        return f"{math.ceil(seconds)}s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours}h{minutes}m" if hours and minutes else f"{hours}h" if hours else f"{minutes}m"


def fit_to_budget(recipe: Recipe, seconds: float, begun: float) -> Recipe:
    """Return a resolved recipe with the counts that make the whole command take about `seconds`.

    Args:
        recipe: as `begin_budget` returns it, then resolved.
        begun: time.perf_counter() when the command began; what it has done since counts.

    Raises:
        UserError: if the time is too short for any run.
    """
    logger.info("budget: measuring a short run")
    with _without_log_lines():
        costs = measure(recipe, seconds, begun)
    left = seconds * (1 - RESERVE) - (time.perf_counter() - begun) - costs.opening - costs.ending
    fitted = fitted_to(recipe, costs, left)
    if fitted is None:
        needed = seconds - left + least(recipe, costs)
        raise UserError(
            f"--budget is {as_budget(seconds)}, which is too short for this teacher on this machine; give at "
            f"least {as_budget(needed * MARGIN)}"
        )
    schedule = fitted.schedule
    logger.info(
        "budget: %s of %d images, %d steps each, and %s in %s",
        counted(schedule.total_batches, "batch", "batches"),
        fitted.synthesize.batch_size,
        fitted.synthesize.steps,
        counted(schedule.total_kd_steps, "training step", "training steps"),
        counted(schedule.rounds, "round", "rounds"),
    )
    if left < (good := good_seconds(recipe, costs)):
        logger.warning(
            "budget: this is enough to try the commands; a good student takes %s or more on this machine",
            as_budget(seconds - left + good),
        )
    return fitted


@contextmanager
def _without_log_lines() -> Iterator[None]:
    """Suppress log lines below ERROR: the run logs them again, or they are about images of a short trial."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
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
    by_time = STEP_SHARE * seconds
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
    warm_up_steps = _warm_up_steps(recipe, costs, seconds)
    warm_up = warm_up_steps * costs.synthesis_step
    for_images = max(IMAGES_SHARE * seconds - warm_up, _batch_cost(costs, STEPS[0]) * 2)
    for_images = min(for_images, seconds - warm_up - _least_training(recipe, costs, rounds=1))
    steps = STEPS[1]
    fewest, most = BATCHES
    if for_images < fewest * _batch_cost(costs, steps):
        steps = _within(STEPS[0], _steps_for(costs, for_images / fewest), STEPS[1])
    elif for_images > most * _batch_cost(costs, steps):
        steps = _within(STEPS[1], _steps_for(costs, for_images / most), STEPS[2])
    batches = max(2, int(for_images / _batch_cost(costs, steps)))
    for rounds in range(min(ROUNDS, batches - 1), 0, -1):
        per_round = max(1, batches // (2 * rounds))
        init = batches - rounds * per_round
        hard = (rounds - 1) * per_round  # the first round's batches are made before any training
        used = warm_up + batches * (costs.batch + steps * costs.synthesis_step)
        used += hard * steps * (costs.hard_step - costs.synthesis_step)
        if used + _least_training(recipe, costs, rounds) <= seconds:
            break
    kd_steps = max(_fewest_kd_steps(recipe, rounds), int((seconds - used) / costs.kd_step / rounds))
    schedule = replace(
        recipe.schedule, init_batches=init, rounds=rounds, batches_per_round=per_round, kd_steps=kd_steps
    )
    warm_up_steps = min(recipe.synthesize.chosen.warmup_steps, warm_up_steps)
    synthesize = replace(recipe.synthesize.with_steps(steps), warmup_steps=warm_up_steps)
    return replace(recipe, schedule=schedule, synthesize=synthesize)


def _warm_up_steps(recipe: Recipe, costs: Costs, seconds: float) -> int:
    """Return the steps of the generator's warm-up, fewer than the recipe's if the time is short."""
    possible = int(WARM_UP_SHARE * seconds / costs.synthesis_step)
    return min(recipe.synthesize.first_steps, max(WARM_UP_STEPS, possible))


def good_seconds(recipe: Recipe, costs: Costs) -> float:
    """Return the seconds of a run with the usual counts, which makes a good student of an easy teacher."""
    warm_up = recipe.synthesize.first_steps * costs.synthesis_step
    return warm_up + BATCHES[0] * _batch_cost(costs, STEPS[1]) + GOOD_KD_STEPS * costs.kd_step


def least(recipe: Recipe, costs: Costs) -> float:
    """Return the seconds of the shortest run."""
    warm_up = _warm_up_steps(recipe, costs, 0) * costs.synthesis_step
    return warm_up + 2 * _batch_cost(costs, STEPS[0]) + _least_training(recipe, costs, rounds=1)


def _least_training(recipe: Recipe, costs: Costs, rounds: int) -> float:
    """Return the seconds that training takes at least in this number of rounds."""
    return rounds * _fewest_kd_steps(recipe, rounds) * costs.kd_step


def _fewest_kd_steps(recipe: Recipe, rounds: int) -> int:
    """Return how many training steps a round needs, so that all rounds outlast the warm-up."""
    return max(MIN_KD_STEPS, recipe.distill.warmup_steps // rounds + 1)


def _batch_cost(costs: Costs, steps: int) -> float:
    """Return the seconds of a batch, on average over those with and without the adversary."""
    return costs.batch + steps * _step_cost(costs)


def _step_cost(costs: Costs) -> float:
    return costs.synthesis_step + HARD_SHARE * (costs.hard_step - costs.synthesis_step)


def _steps_for(costs: Costs, seconds: float) -> int:
    return int((seconds - costs.batch) / _step_cost(costs))


def _within(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))


def measure(recipe: Recipe, seconds: float, begun: float) -> Costs:
    """Run every part of a run for a moment, in a folder that is removed afterwards, and time it.

    Stops early if the time that is left, `seconds` after `begun`, is too short for the run.
    """
    from engine.loop import open_loop

    steps = int(seconds / 1e-3)  # more than can be taken
    schedule = replace(recipe.schedule, init_batches=3, rounds=2, batches_per_round=1, kd_steps=steps)
    trial = replace(
        recipe,
        schedule=schedule,
        synthesize=replace(recipe.synthesize.with_steps(TRIAL_STEPS), warmup_steps=1),
        augment=replace(recipe.augment, variations=min(recipe.augment.variations, TRIED_VARIATIONS)),
        distill=replace(recipe.distill, warmup_steps=0),
    )
    with tempfile.TemporaryDirectory(prefix="budget-") as folder:
        start = time.perf_counter()
        with open_loop(trial, Path(folder, "run"), resume=False, progress=Progress(quiet=True)) as loop:
            opening = time.perf_counter() - start
            more = recipe.augment.variations / trial.augment.variations
            costs = _first_costs(loop, seconds, opening, more)
            if least(recipe, costs) < seconds - (time.perf_counter() - begun) - opening:
                costs = _all_costs(loop, costs, TRIAL_SHARE * seconds, Path(folder), more)
            return costs


def _first_costs(loop: "Loop", seconds: float, opening: float, more: float) -> Costs:
    """Time a batch, which has `more` times the variations in the run, a few training steps and the ending."""
    from engine.training.summary import ending_seconds

    loop.do(Synthesis(batch=0))  # memory and kernels are chosen now
    synthesis, batch = _timed_batch(loop, 1, more)
    batches = min(BATCHES[1], 2 + int(IMAGES_SHARE * seconds / (batch + STEPS[0] * synthesis)))
    sources, variations = loop.recipe.synthesize.batch_size, more * loop.recipe.augment.variations
    images = int(batches * sources * (1 + variations))
    training = _chunk(loop)
    loop.do(training)
    return Costs(
        opening=opening,
        synthesis_step=synthesis,
        hard_step=synthesis,
        batch=batch,
        kd_step=_seconds(lambda: loop.do(training)) / CHUNK,
        ending=ENDING + ending_seconds(loop.recipe, loop.networks, loop.accelerator, images),
    )


def _all_costs(loop: "Loop", first: Costs, seconds: float, folder: Path, more: float) -> Costs:
    """Time what `first` lacks, and training for `seconds`."""
    training = _chunk(loop)
    chunks: list[float] = []
    end = time.perf_counter() + seconds
    while len(chunks) < TIMED_CHUNKS or time.perf_counter() < end:
        chunks.append(_seconds(lambda: loop.do(training)))
    saving = _seconds(lambda: loop.save(folder / "checkpoints"))
    loop.do(Synthesis(batch=2))  # builds the adversary
    hard, _ = _timed_batch(loop, 3, more)
    return replace(
        first,
        hard_step=hard,
        batch=first.batch + saving,
        kd_step=median(chunks) / CHUNK + saving / loop.recipe.schedule.checkpoint_steps,
    )


def _chunk(loop: "Loop") -> Training:
    return Training(round=0, first_step=loop.trainer.step, steps=CHUNK)


def _timed_batch(loop: "Loop", number: int, more: float) -> tuple[float, float]:
    """Return the seconds of a step of synthesis, and those of the rest with `more` times the variations."""
    before = dict(loop.progress.seconds)
    whole = _seconds(lambda: loop.do(Synthesis(batch=number)))
    spent = {name: total - before.get(name, 0.0) for name, total in loop.progress.seconds.items()}
    steps, variations = (
        spent["synthesize"],
        sum(spent.get(name, 0.0) for name in ("augment", "filter", "views")),
    )
    return steps / TRIAL_STEPS, whole - steps + (more - 1) * variations


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
