"""The whole loop: synthesize, augment, filter, distill, evaluate; results go to a folder."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from engine import distributed
from engine.cli.arguments import CommandLine, add_short_flags
from engine.cli.main import main_on_ranks
from engine.cli.resolve import resolve
from engine.errors import UserError
from engine.progress import Progress
from engine.terminal import console
from engine.training.run_folder import check, hashed_settings, own_settings, run_to_resume
from engine.training.run_record import RunRecord
from engine.training.summary import results_table

logger = logging.getLogger(__name__)


def command(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(prog="python -m engine.run", description=__doc__, exit_on_error=False)
    parser.add_argument("--out", metavar="DIR", help="the results' folder (default: runs/NAME of the recipe)")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder")
    add_short_flags(parser)
    line = CommandLine.read(arguments)
    default = f"runs/{line.recipe_name()}"
    begun = run_to_resume(line.value("out") or default, resume=line.given("resume"))
    recipe, options = line.parse(
        parser,
        base=own_settings(begun) if begun and not line.given("recipe") else None,
        source=f"the run {begun}",
        remembered=RunRecord.read(begun).factories if begun else None,
    )
    if distributed.world() > 1:
        raise UserError(
            "engine.run works in one process; make a bank with engine.generate, "
            "then start engine.distill on it in several"
        )
    folder = Path(options.out or f"runs/{recipe.name}")
    recipe = resolve(recipe, batches="measured")
    check(folder, recipe, resume=options.resume, free=hashed_settings(folder))
    from engine.loop import run

    try:
        with Progress() as progress:
            summary = run(recipe, folder, resume=options.resume, progress=progress)
    except KeyboardInterrupt:
        print(f"to continue: the same command with --out {folder} --resume", file=sys.stderr)
        raise
    console().print(results_table(summary, folder))


if __name__ == "__main__":
    sys.exit(main_on_ranks(command))
