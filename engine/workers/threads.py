"""The CPU threads of each worker: a setting that decides the shards' bytes, so it must be settled before."""

from dataclasses import replace

from engine.bank.reader import read_manifest
from engine.bank.storage import open_storage
from engine.errors import UserError
from engine.recipe import Recipe


def with_threads(recipe: Recipe, share: int) -> Recipe:
    """`compute.threads` as given, else a worker's `share` of the cores, 1 at least."""
    threads = recipe.compute.threads or max(1, share)
    return replace(recipe, compute=replace(recipe.compute, threads=threads))


def with_threads_of_bank(recipe: Recipe, url: str) -> Recipe:
    """`compute.threads` as given, else those of the bank at `url`, where there is one."""
    try:
        compute = read_manifest(open_storage(url)).header.recipe.get("compute", {})
    except UserError:
        return recipe
    return with_threads(recipe, compute["threads"]) if compute.get("threads") else recipe
