"""Distillation alone: a student from banks that are there already."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from engine import networks
from engine.bank.reader import BankReader, Snapshot, require_snapshot, snapshot
from engine.bank.storage import absolute
from engine.config.recipe import CONFIG, Recipe, differences
from engine.config.schedule import ScheduleConfig
from engine.curves import Curves
from engine.datasets.test_set import check_test_set
from engine.distributed import from_main, leave, open_accelerator
from engine.errors import UserError
from engine.generation.provenance import TEACHER, require_same_weights, require_teacher_of_bank, teacher_of
from engine.progress import Progress
from engine.training import checkpoint
from engine.training.run_folder import (
    CHECKPOINTS,
    OF_MACHINE,
    SCALARS,
    alone,
    commit_config,
    own_settings,
    save_student,
)
from engine.training.run_record import RunRecord
from engine.training.summary import Summary, summarize
from engine.training.trainer import StudentTraining

logger = logging.getLogger(__name__)


def distill(
    recipe: Recipe,
    urls: Sequence[str],
    shares: Sequence[float] | None,
    out: Path,
    *,
    resume: bool,
    progress: Progress,
) -> Summary | None:
    """Trains the recipe's student for its schedule's steps on the shards that the banks have at the start.

    Writes what `engine.loop.run` writes, but for a bank. With `resume` it goes on from the last checkpoint,
    which does not depend on the number of ranks: on several, each makes this call, the main one alone reads
    and writes `out` and gives the summary, and the others are done after the last step.

    Raises UserError for what the user can mend and NonFiniteError where numbers break.
    """
    start = time.perf_counter()
    accelerator = open_accelerator(recipe.compute)
    logger.info(_headline(recipe, accelerator))
    _require_same_recipe(recipe, accelerator)
    is_main = accelerator.is_main_process
    if is_main:
        check_test_set(recipe.evaluate)
    with ExitStack() as stack:
        if is_main and resume:
            stack.enter_context(alone(out, resume=True))
        state = from_main(accelerator, lambda: checkpoint.load(out / CHECKPOINTS) if resume else None)
        if state is not None:
            start -= state["wall_seconds"]
            progress.seconds.update(state["seconds"])
        banks = _open(urls, recipe, state, shares, accelerator)
        pair = networks.open_pair(recipe, networks.load_pair(recipe, accelerator.device), accelerator)
        commits = scalars = None
        if is_main:
            if not resume:  # a folder is made once everything has loaded
                stack.enter_context(alone(out, resume=False))
            _require_teacher_of_run(recipe, out)
            weights = {TEACHER: teacher_of(recipe)}
            commit_config(out, recipe, RunRecord.of(recipe, weights, banks=urls, shares=shares))
            scalars = stack.enter_context(Curves(str(out / SCALARS)))
            shards = {url: snapshot(bank) for url, bank in zip(urls, banks, strict=True)}
            images = {"shards": shards, "shares": shares}
            commits = _Commits(folder=out / CHECKPOINTS, images=images, progress=progress, start=start)
        header = banks[0].header
        training = StudentTraining(
            recipe,
            pair,
            accelerator,
            progress,
            scalars,
            codec=header.codec,
            channels=header.channels,
            shares=shares,
        )
        _train(stack.enter_context(training), banks, recipe.schedule, state, commits)
        leave()
        if not is_main:
            return None
        save_student(out, pair.student.network)
        summary = summarize(recipe, pair, None, banks, accelerator, progress, start)
        summary.write(out)
        return summary


def _require_same_recipe(recipe: Recipe, accelerator: Accelerator) -> None:
    """Refuse a process whose settings, which it may have read from its own disk, are not the main one's."""
    of_main = from_main(accelerator, lambda: recipe)
    found = (each for each in differences(of_main, recipe) if not each.startswith(OF_MACHINE))
    if difference := next(found, None):
        raise UserError(
            f"process {accelerator.process_index} has other settings than process 0: {difference};"
            " start all with the same flags and --recipe, and give all machines one shared --out to resume"
        )


def _require_teacher_of_run(recipe: Recipe, out: Path) -> None:
    """Refuses another teacher than that of the run in `out`, if there is one."""
    if (out / CONFIG).is_file():
        fix = "restore that file, or give another --out"
        known, made_with = RunRecord.read(out).weights, [own_settings(out)]
        require_same_weights(recipe, known, made_with, whose=f"--out {out}", fix=fix)


def _headline(recipe: Recipe, accelerator: Accelerator) -> str:
    count = accelerator.num_processes
    processes = "" if count == 1 else f", {count} processes"
    return f"{recipe.name}: {accelerator.device.type}, {recipe.compute.precision}{processes}"


@dataclass(frozen=True, kw_only=True)
class _Commits:
    """The checkpoints of a run, which one process writes."""

    folder: Path
    images: dict[str, Any]
    """The banks' snapshots and shares."""
    progress: Progress
    start: float

    def save(self, training: StudentTraining) -> None:
        """Commits everything that decides the remaining steps, the names of the shards included."""
        state = {
            **self.images,
            "training": training.state_dict(),
            "seconds": dict(self.progress.seconds),
            "wall_seconds": time.perf_counter() - self.start,
        }
        checkpoint.save(self.folder, state)
        logger.debug("checkpoint after step %d", training.step)


def _train(
    training: StudentTraining,
    banks: Sequence[BankReader],
    schedule: ScheduleConfig,
    state: dict[str, Any] | None,
    commits: _Commits | None,
) -> None:
    """All steps that are left after `state`, the checkpoint of an earlier training."""
    for place, bank in enumerate(banks):
        for number in bank.numbers:
            training.add(bank.spans(number), bank=place)
    training.warn_of_missing_classes()
    if state is not None:
        training.load_state_dict(state["training"])
    elif commits is not None:
        commits.save(training)
    training.announce()
    while training.step < schedule.total_kd_steps:
        left = schedule.total_kd_steps - training.step
        training.steps(min(schedule.checkpoint_steps, left), first_step=0)
        if commits is not None:
            commits.save(training)


def _open(
    urls: Sequence[str],
    recipe: Recipe,
    state: dict[str, Any] | None,
    shares: Sequence[float] | None,
    accelerator: Accelerator,
) -> list[BankReader]:
    """The banks, with those shards alone that the run was begun with, on every rank the main one's."""
    if state is not None and [absolute(url) for url in state["shards"]] != list(urls):
        begun = ",".join(state["shards"])
        raise UserError(
            f"--resume: this run was begun with --bank {begun}; leave --bank out or give another --out"
        )
    if state is not None and state["shares"] != shares:
        raise UserError("--resume: --shares is not that of the first command; repeat it")
    banks = [BankReader.open(url) for url in urls]
    for url, bank in zip(urls, banks, strict=True):
        _require_fit(url, bank, banks[0], recipe)
    found = [snapshot(bank) for bank in banks] if state is None else list(state["shards"].values())
    taken: list[Snapshot] = from_main(accelerator, lambda: found)
    for url, bank, shards in zip(urls, banks, taken, strict=True):
        require_snapshot(bank, url, shards)
    return [bank.only(shards) for bank, shards in zip(banks, taken, strict=True)]


def _require_fit(url: str, bank: BankReader, first: BankReader, recipe: Recipe) -> None:
    """Refuse a bank of other classes, sizes or teacher than the recipe's, or of other files than the first's.

    Raises UserError that names both sides.
    """
    size = recipe.teacher.image_size
    if bank.header.class_names != recipe.class_names:
        raise UserError(f"--bank {url} has other class_names than the recipe; give its own recipe or another")
    if bank.header.image_size != (size, size):
        height, width = bank.header.image_size
        raise UserError(f"--bank {url} has images of {height}x{width}, teacher.image_size is {size}")
    require_teacher_of_bank(recipe, url, bank.header)
    if bank.header.codec != first.header.codec:
        raise UserError(f"--bank {url} is of codec {bank.header.codec}, the first one {first.header.codec}")
    if bank.header.channels != first.header.channels:
        raise UserError(
            f"--bank {url} stores images as {_colours(bank)}, the first one as {_colours(first)};"
            " give banks that agree in this"
        )


def _colours(bank: BankReader) -> str:
    return "grey" if bank.header.channels == 1 else "RGB"
