"""A student from banks of images and their teacher, on one device, or on several under torchrun."""

import sys
from argparse import ArgumentParser as PlainParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from engine import ranks
from engine.auto_batch.auto import with_default_batches
from engine.bank.storage import absolute
from engine.ending import main
from engine.errors import UserError
from engine.preparing import prepared
from engine.progress import Progress
from engine.recipe import OF_MACHINE_SECTIONS, gives_recipe, name_of
from engine.short_flags import add_short_flags
from engine.terminal import console
from engine.training.run_folder import (
    OF_MACHINE,
    by_hash,
    check,
    run_to_resume,
    settings_to_resume,
    without_machine,
)
from engine.training.run_record import RunRecord
from engine.training.summary import results_table

OF_IMAGES = ("name", "seed", "synthesize", "augment", "filter", "storage")
"""What of a bank's recipe has no say once the images are there."""


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
    urls = _urls(arguments)
    of_bank = _recipe_of_bank(urls, arguments)
    begun = run_to_resume(arguments, f"runs/{name_of(arguments, (of_bank or {}).get('name'))}-distill")
    record = RunRecord.read(begun) if begun else RunRecord()
    urls = urls or record.banks
    own = settings_to_resume(begun, arguments)
    own = own and without_machine(own)
    recipe, options = prepared(
        parser,
        arguments,
        base=own or of_bank,
        source=f"the run {begun}" if own else "the bank",
        remembered=record.factories,
    )
    recipe = with_default_batches(recipe)
    if not urls:
        raise UserError("--bank BANK is missing; give the folder or URL of a bank")
    ranks.require_divisible(recipe.distill.batch_size)
    folder = Path(options.out or f"runs/{recipe.name}-distill")
    if ranks.is_main():
        check(folder, recipe, resume=options.resume, free=(*OF_MACHINE, *by_hash(folder)))
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
        if ranks.is_main():
            print(f"to continue: the same command with --out {folder} --resume", file=sys.stderr)
        raise
    if summary is not None:
        console().print(results_table(summary, folder))


def _urls(arguments: Sequence[str]) -> list[str]:
    """Before the parser, whose defaults are the recipe of the first bank."""
    picker = PlainParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    picker.add_argument("--bank", default="")
    given = picker.parse_known_args(arguments)[0].bank
    return [absolute(url) for url in given.split(",") if url]


def _recipe_of_bank(urls: Sequence[str], arguments: Sequence[str]) -> dict[str, Any] | None:
    """That of the first bank, but for what is not taken; None where another one is named.

    Raises UserError for a bank that was merged from banks of recipes that would train differently.
    """
    if not urls or gives_recipe(arguments):
        return None
    from engine.bank.manifest import first_difference
    from engine.bank.merge import recipes_of
    from engine.bank.reader import BankReader

    recipe, *others = recipes_of(BankReader.open(urls[0]).header.recipe)
    for other in others:
        if difference := first_difference(_of_training(recipe), _of_training(other)):
            raise UserError(
                f"--bank {urls[0]} was merged from banks of several recipes ({difference});"
                " give the one to train by with --recipe"
            )
    return {name: value for name, value in recipe.items() if name not in OF_MACHINE_SECTIONS}


def _of_training(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a bank's recipe decides of a student that is trained on the bank."""
    taken = {name: value for name, value in recipe.items() if name not in (*OF_MACHINE_SECTIONS, *OF_IMAGES)}
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
    sys.exit(main(command))
