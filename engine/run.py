"""The whole loop: synthesize, augment, filter, distill, evaluate; results go to a folder."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from engine.cli import main
from engine.compute import resolved
from engine.errors import UserError
from engine.models.config import require_named
from engine.progress import Progress
from engine.recipe import CONFIG, Recipe, first_difference, load_recipe, parse
from engine.report.table import results_table
from engine.short_flags import add_short_flags, spelled_out


def command(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(prog="python -m engine.run", description=__doc__, exit_on_error=False)
    parser.add_argument("--out", metavar="DIR", help="the results' folder (default: runs/NAME of the recipe)")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder")
    add_short_flags(parser)
    recipe, options = parse(parser, spelled_out(arguments))
    require_named({"teacher": recipe.teacher, "student": recipe.student}, arguments)
    compute = resolved(recipe.compute)
    if compute.runtime == "tensorrt":
        from engine.runtime.fallback import runnable

        compute = runnable(compute, recipe.tensorrt, print)
    recipe = replace(recipe, compute=compute)
    folder = Path(options.out or f"runs/{recipe.name}")
    check(folder, recipe, resume=options.resume)
    from engine.loop import run

    try:
        with Progress() as progress:
            summary = run(recipe, folder, resume=options.resume, progress=progress)
    except KeyboardInterrupt:
        print(f"to continue: the same command with --out {folder} --resume", file=sys.stderr)
        raise
    Console(highlight=False).print(results_table(summary, folder))


def check(folder: Path, recipe: Recipe, *, resume: bool) -> None:
    """Makes sure that `folder` is new, or holds the beginning of just this run.

    Raises UserError that names the folder, or the first setting that differs, and the remedies.
    """
    config = folder / CONFIG
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; give a folder")
    used = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if used and not resume:
        raise UserError(f"--out {folder} is not empty; continue that run with --resume or give another --out")
    if not used:
        return
    if not config.exists():
        raise UserError(
            f"--resume: {folder} has no {CONFIG}, so it is no run to continue; give another --out"
        )
    difference = first_difference(load_recipe(str(config)), recipe)
    if difference:
        raise UserError(
            f"--resume: this command differs from {config} in {difference};"
            " repeat the first command's settings or give another --out"
        )


if __name__ == "__main__":
    sys.exit(main(command))
