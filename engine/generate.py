"""A bank of synthetic images: shards by number, each a function of recipe, seed and number alone.

Workers are processes of this machine (--workers) or actors of a Ray cluster (--ray). SIGTERM ends a
generation once the shards under way are done, a second one at once; SIGTTIN starts one more worker, SIGTTOU
one less.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from engine.cli.arguments import CommandLine, add_short_flags, command_parser
from engine.cli.main import main
from engine.cli.resolve import resolve, threads_of_bank
from engine.config.recipe import OF_MACHINE_SECTIONS, Recipe
from engine.errors import UserError
from engine.generation.monitor.open import add_monitor_flags, monitor_options
from engine.hardware import available_cores
from engine.terminal import console

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from engine.generation.generate_bank import WorkerOptions


def command(arguments: Sequence[str]) -> None:
    parser = command_parser("engine.generate", __doc__)
    _add_flags(parser)
    add_monitor_flags(parser)
    add_short_flags(parser)
    line = CommandLine.read(arguments)
    recipe, options = line.parse(parser, base=_recipe_to_resume(line))
    if options.status:
        _print_status(options)
    elif options.plan:
        _print_plan(recipe, options)
    else:
        _generate(recipe, options)


def _recipe_to_resume(line: CommandLine) -> dict[str, Any] | None:
    """The recipe of the bank that `--resume` continues, but for what does not decide its images.

    None without `--resume`, if `--recipe` names one to compare, and for a bank that has no recipe of its own.
    """
    out = line.value("out")
    if not (line.given("resume") and out) or line.given("recipe"):
        return None
    from engine.bank.merge import MERGED
    from engine.bank.reader import BankReader
    from engine.generation.provenance import DECIDING_COMPUTE

    try:
        recipe = BankReader.open(out, verify=False).header.recipe
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
        with _worker_options(recipe, options) as (resolved, worker_options):
            from engine.generation.generate_bank import generate

            line = generate(
                resolved,
                options.out,
                options.shards,
                resume=options.resume,
                worker_options=worker_options,
                watched=monitor_options(options),
            )
    except KeyboardInterrupt:
        print(f"to continue, repeat the command with --out {options.out} --resume", file=sys.stderr)
        raise
    print(line)


@contextmanager
def _worker_options(recipe: Recipe, options: Namespace) -> "Iterator[tuple[Recipe, WorkerOptions]]":
    """Yield the recipe as resolved where the workers run, and the options of the workers."""
    from engine.generation.generate_bank import WorkerOptions

    if options.resume and recipe.compute.threads is None:
        threads = threads_of_bank(options.out)
        recipe = replace(recipe, compute=replace(recipe.compute, threads=threads))
    if not options.ray:
        workers = options.workers or _local_workers(recipe)
        yield _resolved(recipe, workers), WorkerOptions(workers=workers, retries=options.retries)
        return
    from engine.generation.workers.ray import RayCluster

    needed = (options.workers or 1) * (recipe.compute.threads or 1)
    with RayCluster(options.ray, cpus=max(available_cores(), needed)) as cluster:
        cores, on_gpu = cluster.cores(options.workers), recipe.compute.device == "cuda"
        resolved = cluster.run(resolve, recipe, "measured", cores, on_gpu=on_gpu)
        if recipe.auto_batches:
            sizes = resolved.augment.micro_batch, resolved.filter.micro_batch
            logger.info("augment: batches of %s, filter: %s", *sizes)
        yield resolved, WorkerOptions(cluster=cluster, workers=options.workers, retries=options.retries)


def _local_workers(recipe: Recipe) -> int:
    """One for each GPU, where there are any and the recipe does not rule them out."""
    if recipe.compute.device == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _resolved(recipe: Recipe, workers: int) -> Recipe:
    """Resolve the recipe here; each worker has its share of the threads that torch would take."""
    import torch

    return resolve(recipe, batches="measured", threads=torch.get_num_threads() // workers)


def _print_status(options: Namespace) -> None:
    from engine.generation.monitor.status import status

    print(status(options.status))


def _print_plan(recipe: Recipe, options: Namespace) -> None:
    _check(options)
    if options.ray:
        raise UserError("--plan measures this machine; run it on a node of the cluster, without --ray")
    from engine.generation.cost_plan import plan_table, sample

    resolved = _resolved(recipe, options.workers or _local_workers(recipe))
    console().print(plan_table(sample(resolved), resolved, options.shards, options.workers))


if __name__ == "__main__":
    sys.exit(main(command))
