"""Distillation alone: a student from banks that are there already."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from engine import checkpoint
from engine.assembly import assemble_pair
from engine.bank.reader import BankReader
from engine.bank.snapshot import Snapshot, require_snapshot, snapshot
from engine.compute import open_accelerator
from engine.datasets.config import check_test_set
from engine.errors import UserError
from engine.progress import Progress
from engine.recipe import Recipe
from engine.report.summarize import summarize
from engine.report.summary import Summary
from engine.run_folder import CHECKPOINTS, SCALARS, commit_config, save_student
from engine.student_training import StudentTraining


def distill(
    recipe: Recipe,
    urls: Sequence[str],
    shares: Sequence[float] | None,
    out: Path,
    *,
    resume: bool,
    progress: Progress,
) -> Summary:
    """Trains the recipe's student for its schedule's steps on the shards that the banks have at the start.

    Writes what `engine.loop.run` writes, but for a bank. With `resume` it goes on from the last checkpoint.
    Raises UserError for what the user can mend and NonFiniteError where numbers break.
    """
    start = time.perf_counter()
    accelerator = open_accelerator(recipe.compute)
    progress.say(f"{recipe.name}: {accelerator.device.type}, {recipe.compute.precision}")
    check_test_set(recipe.evaluate)
    state = checkpoint.load(out / CHECKPOINTS) if resume else None
    banks = _open(urls, recipe, None if state is None else state["shards"])
    if state is not None and state["shares"] != shares:
        raise UserError("--resume: --shares is not that of the first command; repeat it")
    pair = assemble_pair(recipe, accelerator, progress.say)
    commit_config(out, recipe)
    with (
        SummaryWriter(str(out / SCALARS)) as scalars,
        StudentTraining(
            recipe, pair, accelerator, progress, scalars, codec=banks[0].header.codec, shares=shares
        ) as training,
    ):
        for place, bank in enumerate(banks):
            for number in bank.numbers:
                training.add(bank.spans(number), bank=place)
        images = {
            "shards": {url: snapshot(bank) for url, bank in zip(urls, banks, strict=True)},
            "shares": shares,
        }
        if state is None:
            _save(out, images, training, progress, time.perf_counter() - start)
        else:
            training.load_state_dict(state["training"])
            progress.seconds.update(state["seconds"])
            start -= state["wall_seconds"]
        training.announce()
        while training.step < recipe.schedule.total_kd_steps:
            left = recipe.schedule.total_kd_steps - training.step
            training.steps(min(recipe.schedule.checkpoint_steps, left), first_step=0)
            _save(out, images, training, progress, time.perf_counter() - start)
    save_student(out, pair.student.network)
    summary = summarize(recipe, pair, None, banks, accelerator, progress, start)
    summary.write(out)
    return summary


def _save(
    out: Path,
    images: dict[str, Any],
    training: StudentTraining,
    progress: Progress,
    wall_seconds: float,
) -> None:
    """Commits everything that decides the remaining steps, the names of the shards included."""
    state = {
        **images,
        "training": training.state_dict(),
        "seconds": dict(progress.seconds),
        "wall_seconds": wall_seconds,
    }
    checkpoint.save(out / CHECKPOINTS, state)


def _open(urls: Sequence[str], recipe: Recipe, taken: dict[str, Snapshot] | None) -> list[BankReader]:
    """The banks, with those shards alone that the run was begun with, where it was."""
    if taken is not None and list(taken) != list(urls):
        raise UserError(
            f"--resume: this run was begun with --bank {','.join(taken)}; repeat that or give another --out"
        )
    banks = [BankReader.open(url) for url in urls]
    for url, bank in zip(urls, banks, strict=True):
        _require_fit(url, bank, banks[0], recipe)
        if taken is not None:
            require_snapshot(bank, url, taken[url])
    if taken is None:
        return banks
    return [bank.only(taken[url]) for url, bank in zip(urls, banks, strict=True)]


def _require_fit(url: str, bank: BankReader, first: BankReader, recipe: Recipe) -> None:
    """Raises UserError for a bank of other classes, sizes or codec than the recipe's or the first's."""
    size = recipe.teacher.image_size
    if bank.header.class_names != recipe.class_names:
        raise UserError(f"--bank {url} has other class_names than the recipe; give its own recipe or another")
    if bank.header.image_size != (size, size):
        height, width = bank.header.image_size
        raise UserError(f"--bank {url} has images of {height}x{width}, teacher.image_size is {size}")
    if bank.header.codec != first.header.codec:
        raise UserError(f"--bank {url} is of codec {bank.header.codec}, the first one {first.header.codec}")
