"""Run the whole loop: synthesize, augment, filter, distill and evaluate, with the results in one folder."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine import distributed
from engine.cli.arguments import CommandLine, add_short_flags, command_parser
from engine.cli.budget import begin_budget, fit_to_budget, parse_budget, require_open_counts
from engine.cli.main import main_on_ranks, resumable
from engine.cli.resolve import resolve
from engine.config.recipe import CONFIG
from engine.errors import UserError
from engine.progress import Progress
from engine.terminal import console
from engine.training.run_folder import check, hashed_settings, own_settings, run_to_resume
from engine.training.run_record import RunRecord


def command(arguments: Sequence[str]) -> None:
    """Run `python -m engine.run` with these arguments."""
    begun = time.perf_counter()
    parser = command_parser("engine.run", __doc__)
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder")
    parser.add_argument(
        "--budget",
        metavar="TIME",
        help="choose batches, steps and training steps so that the whole command takes this time: 10m, 2h; "
        "--resume keeps what was chosen",
    )
    add_short_flags(parser)
    line = CommandLine.read(arguments)
    default = f"runs/{line.recipe_name()}"
    old_run = run_to_resume(line.value("out") or default, resume=line.given("resume"))
    recipe, options = line.parse(
        parser,
        base=own_settings(old_run) if old_run and not line.given("recipe") else None,
        source=f"the run {old_run}",
        remembered=RunRecord.read(old_run).factories if old_run else None,
    )
    if distributed.world() > 1:
        raise UserError(
            "engine.run supports one process only; make a bank with engine.generate, "
            "then run engine.distill on it in several processes"
        )
    folder = Path(options.out or f"runs/{recipe.name}")
    budget = None if options.budget is None or old_run else parse_budget(options.budget)
    if budget:
        require_open_counts(line)
    with resumable(recipe.name, folder, (folder / CONFIG).is_file):
        if not old_run:
            check(folder, recipe, resume=options.resume)
        if budget:
            recipe = begin_budget(recipe, budget)
        recipe = resolve(recipe, batches="measured")
        if budget:
            recipe = fit_to_budget(recipe, budget, begun)
        check(folder, recipe, resume=options.resume, free=hashed_settings(folder))
        from engine.loop import run
        from engine.training.summary import results_table

        with Progress() as progress:
            summary = run(recipe, folder, resume=options.resume, progress=progress, begun=begun)
    console().print(results_table(summary, folder))


if __name__ == "__main__":
    sys.exit(main_on_ranks(command))
