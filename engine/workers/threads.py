"""The CPU threads of each worker: a setting that decides the shards' bytes, so it must be settled before."""

import os
from dataclasses import replace

from engine.bank.reader import read_manifest
from engine.bank.storage import open_storage
from engine.errors import UserError
from engine.recipe import Recipe


def with_threads(recipe: Recipe, cores: int, url: str, *, resume: bool) -> Recipe:
    """`compute.threads` as given; else, on `resume`, those of the bank; else `cores`, a worker's share."""
    threads = recipe.compute.threads or (_of_bank(url) if resume else None) or max(1, cores)
    return replace(recipe, compute=replace(recipe.compute, threads=threads))


def available_cores() -> int:
    """Of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _of_bank(url: str) -> int | None:
    """None where there is no bank yet."""
    try:
        recipe = read_manifest(open_storage(url)).header.recipe
    except UserError:
        return None
    threads = recipe.get("compute", {}).get("threads")
    return threads if isinstance(threads, int) else None
