"""A bank of synthetic images: shards by number, each a function of recipe, seed and number alone.

Workers are processes of this machine (--workers) or actors of a Ray cluster (--ray). SIGTERM ends a
generation once the shards under way are done, a second one at once; SIGTTIN starts one more worker, SIGTTOU
one less.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack

from jsonargparse import ArgumentParser, Namespace

from engine.cli import main
from engine.errors import UserError
from engine.preparing import parsed, settled_here
from engine.recipe import Recipe
from engine.short_flags import add_short_flags
from engine.workers.threads import available_cores, with_threads


def command(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(prog="python -m engine.generate", description=__doc__, exit_on_error=False)
    _add_flags(parser)
    add_short_flags(parser)
    recipe, options = parsed(parser, arguments)
    _check(options)
    try:
        print(_generate(recipe, options))
    except KeyboardInterrupt:
        print(f"to continue: the same command with --out {options.out} --resume", file=sys.stderr)
        raise


def _add_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--out", metavar="BANK", help="folder or URL (s3://...) of the bank")
    parser.add_argument("--shards", type=int, metavar="N", default=1, help="shards 0 to N - 1 are made")
    parser.add_argument(
        "--resume", action="store_true", help="continue that bank: sound shards stay, the rest is made"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that make shards (default: one for each GPU, or of a cluster as many as fit; without"
        " GPUs this process alone)",
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="workers on a Ray cluster: local, auto, or host:port of its head"
    )
    parser.add_argument(
        "--retries", type=int, metavar="N", default=5, help="further tries of a shard that failed"
    )


def _check(options: Namespace) -> None:
    if not options.out:
        raise UserError("--out BANK is missing; give the folder or URL of the bank")
    for flag, least in (("shards", 1), ("workers", 1), ("retries", 0)):
        given = options[flag]
        if given is not None and given < least:
            raise UserError(f"--{flag} is {given}; give {least} or more")


def _generate(recipe: Recipe, options: Namespace) -> str:
    from engine.shards import generate

    with ExitStack() as stack:
        cores, cluster = available_cores() // (options.workers or 1), None
        if options.ray:
            from engine.workers.ray_cluster import RayCluster

            needed = (options.workers or 1) * (recipe.compute.threads or 1)
            cluster = stack.enter_context(RayCluster(options.ray, cpus=max(available_cores(), needed)))
            cores = cluster.cores(options.workers)
        recipe = with_threads(recipe, cores, options.out, resume=options.resume)
        recipe = cluster.run(settled_here, recipe) if cluster else settled_here(recipe)
        from engine.monitor.view import View

        view = View()
        return generate(
            recipe,
            options.out,
            options.shards,
            resume=options.resume,
            workers=options.workers,
            cluster=cluster,
            retries=options.retries,
            view=view,
        )


if __name__ == "__main__":
    sys.exit(main(command))
