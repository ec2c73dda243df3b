"""A bank of synthetic images: shards by number, each a function of recipe, seed and number alone.

Workers are processes of this machine (--workers) or actors of a Ray cluster (--ray). SIGTERM ends a
generation once the shards under way are done, a second one at once; SIGTTIN starts one more worker, SIGTTOU
one less.
"""

import logging
import sys
from argparse import ArgumentParser as PlainParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from engine.auto_batch.auto import has_auto_batch
from engine.cli import main
from engine.compute import available_cores
from engine.errors import UserError
from engine.monitor.flags import add_monitor_flags, monitor_options
from engine.preparing import parsed, settled_to_make
from engine.recipe import OF_MACHINE_SECTIONS, Recipe, gives_recipe
from engine.short_flags import add_short_flags
from engine.terminal import console
from engine.workers.threads import with_threads, with_threads_of_bank

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from engine.workers.workforce import Workforce


def command(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(prog="python -m engine.generate", description=__doc__, exit_on_error=False)
    _add_flags(parser)
    add_monitor_flags(parser)
    add_short_flags(parser)
    recipe, options = parsed(parser, arguments, base=_recipe_to_resume(arguments))
    if options.status:
        _print_status(options)
    elif options.plan:
        _print_plan(recipe, options)
    else:
        _generate(recipe, options)


def _recipe_to_resume(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The recipe of the bank that `--resume` continues, but for what does not decide its images.

    None without `--resume`, if `--recipe` names one to compare, and for a bank that has no recipe of its own.
    """
    picker = PlainParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    picker.add_argument("--out")
    picker.add_argument("--resume", action="store_true")
    given = picker.parse_known_args(arguments)[0]
    if not (given.resume and given.out) or gives_recipe(arguments):
        return None
    from engine.bank.merge import MERGED
    from engine.bank.reader import BankReader
    from engine.provenance import DECIDING_COMPUTE

    try:
        recipe = BankReader.open(given.out, verify=False).header.recipe
    except UserError:
        return None  # there is none yet, or the writer will say what is wrong with it
    if MERGED in recipe:
        return None
    compute = {name: value for name, value in recipe.get("compute", {}).items() if name in DECIDING_COMPUTE}
    return {
        **{name: value for name, value in recipe.items() if name not in OF_MACHINE_SECTIONS},
        "compute": compute,
    }


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
        help="how many make shards (default: one for each GPU, of a cluster as many as fit; without GPUs this"
        " process alone)",
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="workers on a Ray cluster: local, auto, or host:port of its head"
    )
    parser.add_argument(
        "--retries", type=int, metavar="N", default=5, help="further tries of a shard that failed"
    )
    parser.add_argument(
        "--plan", action="store_true", help="makes a short sample and says what --shards N will cost"
    )
    parser.add_argument("--status", metavar="BANK", help="says how far a bank is, and ends")


def _check(options: Namespace) -> None:
    for flag, least in (("shards", 1), ("workers", 1), ("retries", 0)):
        given = options[flag]
        if given is not None and given < least:
            raise UserError(f"--{flag} is {given}; give {least} or more")


def _generate(recipe: Recipe, options: Namespace) -> None:
    _check(options)
    if not options.out:
        raise UserError("--out BANK is missing; give the folder or URL of the bank")
    try:
        with _workforce(recipe, options) as (settled, workforce):
            from engine.shards import generate

            line = generate(
                settled,
                options.out,
                options.shards,
                resume=options.resume,
                workforce=workforce,
                watched=monitor_options(options),
            )
    except KeyboardInterrupt:
        print(f"to continue: the same command with --out {options.out} --resume", file=sys.stderr)
        raise
    print(line)


@contextmanager
def _workforce(recipe: Recipe, options: Namespace) -> "Iterator[tuple[Recipe, Workforce]]":
    """The workers asked for, and the recipe as settled where they are."""
    from engine.workers.workforce import Workforce

    if options.resume and recipe.compute.threads is None:
        recipe = with_threads_of_bank(recipe, options.out)
    if not options.ray:
        workers = options.workers or _local_workers(recipe)
        yield settled_to_make(_shared(recipe, workers)), Workforce(workers=workers, retries=options.retries)
        return
    from engine.workers.ray_cluster import RayCluster

    needed = (options.workers or 1) * (recipe.compute.threads or 1)
    with RayCluster(options.ray, cpus=max(available_cores(), needed)) as cluster:
        threaded = with_threads(recipe, cluster.cores(options.workers))
        settled = cluster.run(settled_to_make, threaded, on_gpu=recipe.compute.device == "cuda")
        if has_auto_batch(threaded):
            sizes = settled.augment.micro_batch, settled.filter.micro_batch
            logger.info("augment: batches of %s, filter: %s", *sizes)
        yield settled, Workforce(cluster=cluster, workers=options.workers, retries=options.retries)


def _local_workers(recipe: Recipe) -> int:
    """One for each GPU, where there are any and the recipe does not rule them out."""
    if recipe.compute.device == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _shared(recipe: Recipe, workers: int) -> Recipe:
    """Each worker has its share of the threads that torch would take."""
    import torch

    return with_threads(recipe, torch.get_num_threads() // workers)


def _print_status(options: Namespace) -> None:
    from engine.monitor.status import status

    print(status(options.status))


def _print_plan(recipe: Recipe, options: Namespace) -> None:
    _check(options)
    if options.ray:
        raise UserError("--plan measures this machine; run it on a node of the cluster, without --ray")
    from engine.workers.plan import sample
    from engine.workers.plan_table import plan_table

    settled = settled_to_make(_shared(recipe, options.workers or _local_workers(recipe)))
    console().print(plan_table(sample(settled), settled, options.shards, options.workers))


if __name__ == "__main__":
    sys.exit(main(command))
