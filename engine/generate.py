"""Generate a bank of synthetic images, shard by shard. A shard depends only on recipe, seed and its number.

Workers are processes on this machine (--workers) or actors on a Ray cluster (--ray). SIGTERM stops the
generation after the shards under way, a second SIGTERM at once. SIGTTIN adds a worker, SIGTTOU removes one.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from engine.bank.manifest import MANIFEST
from engine.bank.storage import open_storage
from engine.cli.arguments import CommandLine, add_short_flags, command_parser
from engine.cli.main import main, resumable
from engine.cli.resolve import resolve, threads_of_bank
from engine.config.recipe import OF_MACHINE_SECTIONS, Recipe
from engine.errors import UserError
from engine.generation.monitor.open import add_monitor_flags, monitor_options
from engine.hardware import available_cores
from engine.terminal import Terminated, console

logger = logging.getLogger("engine.generate")  # __name__ is __main__

if TYPE_CHECKING:
    from engine.generation.generate_bank import WorkerOptions


def command(arguments: Sequence[str]) -> None:
    """Run `python -m engine.generate`."""
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
    """Return the settings that decide the images of the bank that `--resume` continues.

    None without `--resume`, with `--recipe`, and for a bank without a recipe of its own.
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
        return None  # there is no bank yet, or the writer will report what is wrong with it
    if MERGED in recipe:
        return None
    compute = {name: value for name, value in recipe.get("compute", {}).items() if name in DECIDING_COMPUTE}
    return {
        **{name: value for name, value in recipe.items() if name not in OF_MACHINE_SECTIONS},
        "compute": compute,
    }


def _add_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--out", metavar="BANK", help="folder or URL (s3://...) of the bank")
    parser.add_argument("--shards", type=int, metavar="N", default=1, help="generate shards 0 to N - 1")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the bank: keep intact shards, generate the missing ones",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of workers (default: one per GPU, or as many as fit on the Ray cluster; without GPUs one"
        " in this process)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the workers on a Ray cluster: local, auto, or host:port of its head",
    )
    parser.add_argument(
        "--retries", type=int, metavar="N", default=5, help="maximum number of retries of a shard that fails"
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="estimate time and disk usage of --shards N from a short sample and exit",
    )
    parser.add_argument("--status", metavar="BANK", help="show the bank's progress and exit")


def _check(options: Namespace) -> None:
    for flag, minimum in (("shards", 1), ("workers", 1), ("retries", 0)):
        value = options[flag]
        if value is not None and value < minimum:
            raise UserError(f"--{flag} is {value}; set {minimum} or more")


def _generate(recipe: Recipe, options: Namespace) -> None:
    _check(options)
    if not options.out:
        raise UserError("--out BANK is missing; set the folder or URL of the bank")
    with (
        resumable(recipe.name, options.out, lambda: _is_bank(options.out)),
        _worker_options(recipe, options) as (resolved, worker_options),
    ):
        from engine.generation.generate_bank import generate

        line, is_terminated = generate(
            resolved,
            options.out,
            options.shards,
            resume=options.resume,
            worker_options=worker_options,
            monitor_options=monitor_options(options),
        )
        print(line)
        if is_terminated:
            raise Terminated


def _is_bank(url: str) -> bool:
    """Return whether there is a bank, or whether that cannot be told."""
    try:
        return open_storage(url).size(MANIFEST) is not None
    except (UserError, OSError):
        return True


@contextmanager
def _worker_options(recipe: Recipe, options: Namespace) -> "Iterator[tuple[Recipe, WorkerOptions]]":
    """Yield the recipe, resolved on a machine that runs workers, and the options of the workers."""
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
            logger.info("micro-batches: augment %s, filter %s", *sizes)
        yield resolved, WorkerOptions(cluster=cluster, workers=options.workers, retries=options.retries)


def _local_workers(recipe: Recipe) -> int:
    """Return the number of GPUs, or 1 if there are none or the recipe excludes them."""
    if recipe.compute.device == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _resolved(recipe: Recipe, workers: int) -> Recipe:
    """Resolve the recipe on this machine; each worker gets its share of torch's threads."""
    import torch

    return resolve(recipe, batches="measured", threads=torch.get_num_threads() // workers)


def _print_status(options: Namespace) -> None:
    from engine.generation.monitor.status import status

    print(status(options.status))


def _print_plan(recipe: Recipe, options: Namespace) -> None:
    _check(options)
    if options.ray:
        raise UserError("--plan measures this machine; run it on a node of the cluster, without --ray")
    from engine.generation.cost_plan import plan_table, take_sample

    logger.info("%s: starting with a sample", recipe.name)
    resolved = _resolved(recipe, options.workers or _local_workers(recipe))
    console().print(plan_table(take_sample(resolved), resolved, options.shards, options.workers))


if __name__ == "__main__":
    sys.exit(main(command))
