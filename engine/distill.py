"""Train a student on banks of images with their teacher, on one device, or on several under torchrun."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import distributed
from engine.bank.storage import absolute
from engine.cli.arguments import CommandLine, add_short_flags, command_parser
from engine.cli.main import main_on_ranks, resumable
from engine.cli.resolve import resolve
from engine.config.decides import sections
from engine.config.recipe import CONFIG, OF_MACHINE_SECTIONS, Recipe
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


def command(arguments: Sequence[str]) -> None:
    """Run `python -m engine.distill` with these arguments."""
    parser = command_parser("engine.distill", __doc__)
    parser.add_argument(
        "--bank",
        metavar="BANK[,BANK]",
        help="folders or URLs of the banks (required); without --recipe, the first bank's recipe applies",
    )
    parser.add_argument(
        "--shares", metavar="N,N", help="proportions of the banks in a batch (default: their sizes)"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default: runs/NAME-distill)")
    parser.add_argument("--resume", action="store_true", help="continue that run with its banks and recipe")
    add_short_flags(parser)
    line = CommandLine.read(arguments)
    urls = [absolute(url) for url in (line.value("bank") or "").split(",") if url]
    bank_recipe = _recipe_of_bank(urls[0]) if urls and not line.given("recipe") else None
    default = f"runs/{line.recipe_name((bank_recipe or {}).get('name'))}-distill"
    old_run = run_to_resume(line.value("out") or default, resume=line.given("resume"))
    record = RunRecord.read(old_run) if old_run else RunRecord()
    urls = urls or record.banks
    run_recipe = without_machine(own_settings(old_run)) if old_run and not line.given("recipe") else None
    recipe, options = line.parse(
        parser,
        base=run_recipe or bank_recipe,
        source=f"the run {old_run}" if run_recipe else "the bank",
        remembered=record.factories,
    )
    if not urls:
        raise UserError("--bank BANK is missing; give the folder or URL of a bank")
    folder = Path(options.out or f"runs/{recipe.name}-distill")
    with resumable(recipe.name, folder, (folder / CONFIG).is_file):
        recipe = resolve(recipe, makes_images=False)
        distributed.require_divisible(recipe.distill.batch_size)
        if distributed.is_main():
            check(folder, recipe, resume=options.resume, free=(*MACHINE_SETTINGS, *hashed_settings(folder)))
        from engine.training.from_banks import distill
        from engine.training.summary import results_table

        with Progress() as progress:
            summary = distill(
                recipe,
                urls,
                record.shares if options.shares is None else _shares(options.shares, len(urls)),
                folder,
                resume=options.resume,
                progress=progress,
            )
    if summary is not None:
        console().print(results_table(summary, folder))


def _recipe_of_bank(url: str) -> dict[str, Any]:
    """Return the bank's recipe without the sections that depend on the machine.

    Raises UserError if the bank was merged from banks whose recipes train differently.
    """
    from engine.bank.manifest import first_difference
    from engine.bank.merge import recipes_of
    from engine.bank.reader import BankReader

    recipe, *others = recipes_of(BankReader.open(url).header.recipe)
    for other in others:
        if difference := first_difference(_training_settings(recipe), _training_settings(other)):
            raise UserError(
                f"--bank {url} was merged from banks with different recipes ({difference});"
                " choose one with --recipe"
            )
    return {name: value for name, value in recipe.items() if name not in OF_MACHINE_SECTIONS}


def _training_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a bank's recipe that affects a student trained on the bank."""
    names = sections(Recipe, "student")
    kept = {name: value for name, value in recipe.items() if name in names}
    return {**kept, "teacher": {**recipe["teacher"], "weights": None}}  # weights are compared by hash


def _shares(given: str, banks: int) -> list[float]:
    """Return the share of each bank; they sum to 1."""
    try:
        shares = [float(share) for share in given.split(",")]
    except ValueError:
        shares = []
    if len(shares) != banks or not all(0 < share < float("inf") for share in shares):
        raise UserError(f"--shares is {given}; give {banks} comma-separated numbers above 0, one per bank")
    return [share / sum(shares) for share in shares]


if __name__ == "__main__":
    sys.exit(main_on_ranks(command))
