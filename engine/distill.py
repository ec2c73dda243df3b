"""A student from banks of images and their teacher, on one device, or on several under torchrun."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from engine import distributed
from engine.bank.storage import absolute
from engine.cli.arguments import CommandLine, add_short_flags
from engine.cli.main import main_on_ranks
from engine.cli.resolve import resolve
from engine.config.decides import sections
from engine.config.recipe import OF_MACHINE_SECTIONS, Recipe
from engine.errors import UserError
from engine.progress import Progress
from engine.terminal import console
from engine.training.run_folder import (
    MACHINE_SETTINGS,
    check,
    hashed_settings,
    own_settings,
    run_to_resume,
    without_machine,
)
from engine.training.run_record import RunRecord
from engine.training.summary import results_table


def command(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(prog="python -m engine.distill", description=__doc__, exit_on_error=False)
    parser.add_argument(
        "--bank",
        metavar="BANK[,BANK]",
        help="folders or URLs; the recipe is the first one's unless --recipe is given (--resume: the run's)",
    )
    parser.add_argument(
        "--shares", metavar="N,N", help="images of each bank in a batch, in proportion (default: their sizes)"
    )
    parser.add_argument("--out", metavar="DIR", help="the results' folder (default: runs/NAME-distill)")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder")
    add_short_flags(parser)
    line = CommandLine.read(arguments)
    urls = [absolute(url) for url in (line.value("bank") or "").split(",") if url]
    of_bank = _recipe_of_bank(urls[0]) if urls and not line.given("recipe") else None
    default = f"runs/{line.recipe_name((of_bank or {}).get('name'))}-distill"
    begun = run_to_resume(line.value("out") or default, resume=line.given("resume"))
    record = RunRecord.read(begun) if begun else RunRecord()
    urls = urls or record.banks
    own = without_machine(own_settings(begun)) if begun and not line.given("recipe") else None
    recipe, options = line.parse(
        parser,
        base=own or of_bank,
        source=f"the run {begun}" if own else "the bank",
        remembered=record.factories,
    )
    recipe = resolve(recipe)
    if not urls:
        raise UserError("--bank BANK is missing; give the folder or URL of a bank")
    distributed.require_divisible(recipe.distill.batch_size)
    folder = Path(options.out or f"runs/{recipe.name}-distill")
    if distributed.is_main():
        check(folder, recipe, resume=options.resume, free=(*MACHINE_SETTINGS, *hashed_settings(folder)))
    from engine.training.from_banks import distill

    try:
        with Progress() as progress:
            summary = distill(
                recipe,
                urls,
                record.shares if options.shares is None else _shares(options.shares, len(urls)),
                folder,
                resume=options.resume,
                progress=progress,
            )
    except KeyboardInterrupt:
        if distributed.is_main():
            print(f"to continue: the same command with --out {folder} --resume", file=sys.stderr)
        raise
    if summary is not None:
        console().print(results_table(summary, folder))


def _recipe_of_bank(url: str) -> dict[str, Any]:
    """Return the bank's recipe without the sections that this machine decides.

    Raises UserError for a bank that was merged from banks of recipes that would train differently.
    """
    from engine.bank.manifest import first_difference
    from engine.bank.merge import recipes_of
    from engine.bank.reader import BankReader

    recipe, *others = recipes_of(BankReader.open(url).header.recipe)
    for other in others:
        if difference := first_difference(_of_training(recipe), _of_training(other)):
            raise UserError(
                f"--bank {url} was merged from banks of several recipes ({difference});"
                " give the one to train by with --recipe"
            )
    return {name: value for name, value in recipe.items() if name not in OF_MACHINE_SECTIONS}


def _of_training(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a bank's recipe that decides a student trained on the bank."""
    training = sections(Recipe, "student")
    taken = {name: value for name, value in recipe.items() if name in training}
    return {**taken, "teacher": {**recipe["teacher"], "weights": None}}  # compared by hash


def _shares(given: str, banks: int) -> list[float]:
    """Sum 1."""
    try:
        shares = [float(share) for share in given.split(",")]
    except ValueError:
        shares = []
    if len(shares) != banks or not all(0 < share < float("inf") for share in shares):
        raise UserError(f"--shares {given}: give {banks} numbers above 0 with commas between, one a bank")
    return [share / sum(shares) for share in shares]


if __name__ == "__main__":
    sys.exit(main_on_ranks(command))
