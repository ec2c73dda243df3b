"""The whole loop: synthesize, augment, filter, distill, evaluate; results go to a folder."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from engine import ranks
from engine.auto_batch.auto import has_auto_batch
from engine.ending import main
from engine.errors import UserError
from engine.preparing import prepared
from engine.progress import Progress
from engine.recipe import name_of
from engine.short_flags import add_short_flags
from engine.terminal import console
from engine.training.run_folder import by_hash, check, run_to_resume, settings_to_resume
from engine.training.run_record import RunRecord
from engine.training.summary import results_table

logger = logging.getLogger(__name__)


def command(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(prog="python -m engine.run", description=__doc__, exit_on_error=False)
    parser.add_argument("--out", metavar="DIR", help="the results' folder (default: runs/NAME of the recipe)")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder")
    add_short_flags(parser)
    begun = run_to_resume(arguments, f"runs/{name_of(arguments)}")
    recipe, options = prepared(
        parser,
        arguments,
        base=settings_to_resume(begun, arguments),
        source=f"the run {begun}",
        remembered=RunRecord.read(begun).factories if begun else None,
    )
    if ranks.world() > 1:
        raise UserError(
            "engine.run works in one process; make a bank with engine.generate, "
            "then start engine.distill on it in several"
        )
    folder = Path(options.out or f"runs/{recipe.name}")
    if has_auto_batch(recipe):
        from engine.auto_batch.settling import settled_batches

        recipe = settled_batches(recipe, logger.info)
    check(folder, recipe, resume=options.resume, free=by_hash(folder))
    from engine.loop import run

    try:
        with Progress() as progress:
            summary = run(recipe, folder, resume=options.resume, progress=progress)
    except KeyboardInterrupt:
        print(f"to continue: the same command with --out {folder} --resume", file=sys.stderr)
        raise
    console().print(results_table(summary, folder))


if __name__ == "__main__":
    sys.exit(main(command))
