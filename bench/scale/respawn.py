"""Measure how fast a killed worker is replaced, with a forked process or a new interpreter."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.rows import Row
from bench.scale.generation import embedded
from bench.scale.row import row
from engine.config.recipe import Recipe
from engine.generation.messages import Done, Failed, Job, LoadFailed, Lost, Ready
from engine.generation.provenance import bank_header
from engine.generation.workers.pool import WorkerPool
from engine.generation.workers.processes import ProcessPool

BATCH, STEPS, ROUNDS = 8, 2, 3
"""Small shards with little synthesis, so that start-up dominates."""
LONGEST = 120.0
"""Seconds after which a step counts as failed."""


def rows() -> Iterator[Row]:
    """Yield the seconds from the start of the replacement's process; the two ways alternate."""
    recipe = embedded(BATCH)
    recipe = replace(recipe, synthesize=replace(recipe.synthesize, steps=STEPS, warmup_steps=1))
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with TemporaryDirectory() as folder:
        job = Job(recipe=recipe, url=str(Path(folder) / "bank"), header=bank_header(recipe))
        for _ in range(ROUNDS):
            for forks, times in found.items():
                times.append(_replacement(job, forks=forks))
    (forked_loaded, forked_made), (new_loaded, new_made) = (
        [median(each) for each in zip(*times, strict=True)] for times in found.values()
    )
    same = partial(row, dtype=recipe.compute.runtime_precision, shape=_shape(recipe))
    yield same("respawn, networks loaded", "a new interpreter", forked_loaded, new_loaded, "s")
    yield same("respawn, first shard", "a new interpreter", forked_made, new_made, "s")


def _shape(recipe: Recipe) -> str:
    variations = recipe.augment.variations
    return f"{BATCH} sources of {STEPS} steps x {variations} variations per shard, 1 worker with 1 thread"


def _replacement(job: Job, *, forks: bool) -> tuple[float, float]:
    """Return the seconds until a killed worker's replacement has loaded, and until it has made shard 0."""
    with ProcessPool(job, 1, forks=forks) as pool:
        pool.resize(1)
        _until(pool, Ready)
        pool.workers[0].kill()
        _until(pool, Lost)
        start = time.perf_counter()
        pool.resize(1)
        _until(pool, Ready)
        loaded = time.perf_counter() - start
        pool.give(pool.workers[0], 0)
        _until(pool, Done)
        return loaded, time.perf_counter() - start


def _until(pool: WorkerPool, kind: type) -> None:
    """Wait for an event of that kind. Raises RuntimeError if the worker fails, or after LONGEST seconds."""
    found: list[object] = []
    deadline = time.monotonic() + LONGEST
    while not any(isinstance(what, kind) for what in found):
        found = [event.what for event in pool.wait(LONGEST)]
        failure = next((what for what in found if isinstance(what, Failed | LoadFailed | Lost)), None)
        if time.monotonic() > deadline or (failure and not isinstance(failure, kind)):
            raise RuntimeError(f"expected {kind.__name__}, got {failure or f'nothing in {LONGEST:.0f} s'}")
