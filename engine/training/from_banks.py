"""Train a student on existing banks, on one device or several."""

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
from engine.hardware import SharedCores
from engine.progress import Progress
from engine.training import checkpoint
from engine.training.run_folder import (
    CHECKPOINTS,
    MACHINE_SETTINGS,
    TENSORBOARD,
    commit_config,
    lock_run,
    own_settings,
    save_student,
)
from engine.training.run_record import RunRecord
from engine.training.summary import Summary, summarize
from engine.training.trainer import StudentTrainer

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
    """Train the recipe's student on the shards that the banks have at the start.

    Writes the files of `engine.loop.run`, except the bank. With several ranks, each must make this call; only
    the main one reads and writes `out`. The checkpoint does not depend on the number of ranks.

    Args:
        urls: the banks.
        shares: of each bank in a batch; None for shares by their sizes.
        resume: continue from the last checkpoint, with the shards that the run began with.

    Returns:
        The summary on the main rank, None on the others.

    Raises:
        UserError: for a mistake of the user.
        NonFiniteError: if the loss is NaN or Inf.
    """
    start = time.perf_counter()
    accelerator = open_accelerator(recipe.compute)
    logger.info(_headline(recipe, accelerator))
    _require_same_recipe(recipe, accelerator)
    is_main = accelerator.is_main_process
    if is_main:
        check_test_set(recipe.evaluate, recipe.names, recipe.teacher.size)
    with ExitStack() as stack:
        if is_main and resume:
            stack.enter_context(lock_run(out, resume=True))
        state = from_main(accelerator, lambda: checkpoint.load(out / CHECKPOINTS) if resume else None)
        if state is not None:
            start -= state["wall_seconds"]
            progress.seconds.update(state["seconds"])
        banks = _open(urls, recipe, state, shares, accelerator)
        pair = networks.open_pair(recipe, networks.load_pair(recipe, accelerator.device), accelerator)
        checkpoints = curves = None
        if is_main:
            if not resume:  # create the folder only once everything has loaded
                stack.enter_context(lock_run(out, resume=False))
            _require_teacher_of_run(recipe, out)
            weights = {TEACHER: teacher_of(recipe)}
            commit_config(out, recipe, RunRecord.of(recipe, weights, banks=urls, shares=shares))
            curves = stack.enter_context(Curves(str(out / TENSORBOARD)))
            shards = {url: snapshot(bank) for url, bank in zip(urls, banks, strict=True)}
            images = {"shards": shards, "shares": shares}
            checkpoints = _Checkpoints(
                folder=out / CHECKPOINTS, images=images, progress=progress, start=start
            )
        header = banks[0].header
        cores = stack.enter_context(SharedCores(recipe.compute, ranks=accelerator.num_processes))
        trainer = StudentTrainer(
            recipe,
            pair,
            accelerator,
            progress,
            curves,
            cores,
            codec=header.codec,
            channels=header.channels,
            shares=shares,
        )
        _add(stack.enter_context(trainer), banks, accelerator)
        _train(trainer, recipe.schedule, state, checkpoints)
        leave()
        if not is_main:
            return None
        save_student(out, pair.student.network)
        summary = summarize(recipe, pair, None, banks, accelerator, progress, cores, start)
        summary.write(out)
        return summary


def _require_same_recipe(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raise UserError if this process read other settings than the main one, perhaps from its own disk."""
    main_recipe = from_main(accelerator, lambda: recipe)
    found = (each for each in differences(main_recipe, recipe) if not each.startswith(MACHINE_SETTINGS))
    if difference := next(found, None):
        raise UserError(
            f"process {accelerator.process_index} has other settings than process 0: {difference};"
            " start all with the same flags and --recipe, and give all machines one shared --out to resume"
        )


def _require_teacher_of_run(recipe: Recipe, out: Path) -> None:
    """Raise UserError if `out` holds a run with another teacher."""
    if (out / CONFIG).is_file():
        fix = "restore that file, or give another --out"
        known, made_with = RunRecord.read(out).weights, [own_settings(out)]
        require_same_weights(recipe, known, made_with, whose=f"--out {out}", fix=fix)


def _headline(recipe: Recipe, accelerator: Accelerator) -> str:
    count = accelerator.num_processes
    processes = "" if count == 1 else f", {count} processes"
    return f"{recipe.name}: {accelerator.device.type}, {recipe.compute.precision}{processes}"


@dataclass(frozen=True, kw_only=True)
class _Checkpoints:
    """Writes the checkpoints of a run, on the main rank."""

    folder: Path
    images: dict[str, Any]
    """The banks' snapshots and shares."""
    progress: Progress
    start: float

    def save(self, trainer: StudentTrainer) -> None:
        """Save everything that decides the remaining steps, including the names of the shards."""
        state = {
            **self.images,
            "training": trainer.state_dict(),
            "seconds": dict(self.progress.seconds),
            "wall_seconds": time.perf_counter() - self.start,
        }
        checkpoint.save(self.folder, state)
        logger.debug("checkpoint after step %d", trainer.step)


def _add(trainer: StudentTrainer, banks: Sequence[BankReader], accelerator: Accelerator) -> None:
    """Add all shards to the training images. The ranks share the work of making views that are missing."""
    shards = [(position, number) for position, bank in enumerate(banks) for number in bank.numbers]
    if trainer.views is not None and accelerator.num_processes > 1:
        for position, number in shards[accelerator.process_index :: accelerator.num_processes]:
            trainer.views.of_shard(banks[position], number)
        accelerator.wait_for_everyone()
    for position, number in shards:
        trainer.add(banks[position], number, bank=position)
    trainer.warn_of_missing_classes()


def _train(
    trainer: StudentTrainer,
    schedule: ScheduleConfig,
    state: dict[str, Any] | None,
    checkpoints: _Checkpoints | None,
) -> None:
    """Train to the end of the schedule, from `state` if it is a checkpoint."""
    if state is not None:
        trainer.load_state_dict(state["training"])
    elif checkpoints is not None:
        checkpoints.save(trainer)
    trainer.announce()
    while trainer.step < schedule.total_kd_steps:
        left = schedule.total_kd_steps - trainer.step
        trainer.train(min(schedule.checkpoint_steps, left), first_step=0)
        if checkpoints is not None:
            checkpoints.save(trainer)


def _open(
    urls: Sequence[str],
    recipe: Recipe,
    state: dict[str, Any] | None,
    shares: Sequence[float] | None,
    accelerator: Accelerator,
) -> list[BankReader]:
    """Open the banks with only the shards that the run began with, which are the same on all ranks."""
    if state is not None and [absolute(url) for url in state["shards"]] != list(urls):
        first = ",".join(state["shards"])
        raise UserError(
            f"--resume: this run began with --bank {first}; leave out --bank or give another --out"
        )
    if state is not None and state["shares"] != shares:
        raise UserError("--resume: --shares differs from the first command's; give the same shares")
    banks = [BankReader.open(url) for url in urls]
    for url, bank in zip(urls, banks, strict=True):
        _require_fit(url, bank, banks[0], recipe)
    found = [snapshot(bank) for bank in banks] if state is None else list(state["shards"].values())
    snapshots: list[Snapshot] = from_main(accelerator, lambda: found)
    for url, bank, shards in zip(urls, banks, snapshots, strict=True):
        require_snapshot(bank, url, shards)
    return [bank.only(shards) for bank, shards in zip(banks, snapshots, strict=True)]


def _require_fit(url: str, bank: BankReader, first: BankReader, recipe: Recipe) -> None:
    """Raise UserError if a bank does not fit the recipe or the first bank.

    Classes, image size and teacher must be the recipe's; codec and channels must be the first bank's.
    """
    size = recipe.teacher.size
    if bank.header.class_names != recipe.names:
        raise UserError(
            f"--bank {url} has other class_names than the recipe; give the bank's recipe or another bank"
        )
    if bank.header.image_size != size:
        height, width = bank.header.image_size
        raise UserError(
            f"teacher.image_size is {recipe.teacher.size_text}, but --bank {url} has images of "
            f"{height}x{width}; give another size or another bank"
        )
    require_teacher_of_bank(recipe, url, bank.header)
    if bank.header.codec != first.header.codec:
        raise UserError(
            f"--bank {url} has codec {bank.header.codec}, but the first {first.header.codec}; "
            "give banks with the same codec"
        )
    if bank.header.channels != first.header.channels:
        raise UserError(
            f"--bank {url} stores images as {_colours(bank)}, but the first as {_colours(first)}; "
            "give banks with the same colours"
        )


def _colours(bank: BankReader) -> str:
    return "grey" if bank.header.channels == 1 else "RGB"
