"""Images a second of the stages as they will run, with so many images at once."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from accelerate.utils.memory import clear_device_cache

from engine.assembly import Assembly, assemble
from engine.auto_batch.search import Reading
from engine.compute import open_accelerator
from engine.lanes import Step, lanes, threads_of, torch_threads
from engine.recipe import Recipe
from engine.stages.augment import augment
from engine.stages.batch import ImageBatch
from engine.stages.filter import judge
from engine.stages.micro_batch import MicroBatch

REPEATS, SECONDS = 2, 1.0
"""Timed runs, at least so many and so long in all; the fastest counts. One more goes before them."""
BUILT_FOR_A_SIZE = ("openvino", "tensorrt")


class Timing:
    """Measures stages of recipes that differ in the sizes of their micro-batches, which are numbers."""

    def __init__(self, recipe: Recipe, say: Callable[[str], None]) -> None:
        self._say = say
        self._accelerator = open_accelerator(recipe.compute)
        self._lanes = lanes(recipe)
        self._parts: Assembly | None = None

    def measure(self, recipe: Recipe, stage: Step) -> Reading:
        """The reading of "augment" or "filter" with its micro-batch, or with what memory holds of it.

        Raises OutOfMemoryError where it does not hold one image.
        """
        parts, size = self.opened(recipe), getattr(recipe, stage).images_at_once
        micro_batch = MicroBatch(stage, size, level=logging.DEBUG)
        run = self._augment if stage == "augment" else self._filter
        with torch_threads(threads_of(self._lanes, stage)):
            run(recipe, parts, micro_batch, size)
            held, seconds = micro_batch.size, list[float]()
            while len(seconds) < REPEATS or sum(seconds) < SECONDS:
                start = time.perf_counter()
                run(recipe, parts, micro_batch, held)
                seconds.append(time.perf_counter() - start)
        return Reading(micro_batch.size, held / min(seconds))

    def close(self) -> None:
        """Gives the networks and their memory back."""
        self._parts = None
        clear_device_cache(garbage_collection=True)

    def opened(self, recipe: Recipe) -> Assembly:
        """The networks, loaded once unless the runtime builds them for a size."""
        compute = recipe.compute
        if self._parts is None or compute.compile or compute.runtime in BUILT_FOR_A_SIZE:
            self.close()
            self._parts = assemble(recipe, self._accelerator, self._say, self._lanes)
        return self._parts

    def _augment(self, recipe: Recipe, parts: Assembly, micro_batch: MicroBatch, size: int) -> None:
        """One micro-batch and the sources that it is of."""
        assert parts.prior is not None
        count = -(-size // recipe.augment.variations)
        made = augment(
            _noise(recipe, count),
            parts.prior,
            recipe.augment,
            seed=recipe.seed,
            class_tokens=parts.class_tokens,
            device=self._accelerator.device,
            micro_batch=micro_batch,
        )
        next(made)

    def _filter(self, recipe: Recipe, parts: Assembly, micro_batch: MicroBatch, size: int) -> None:
        """One micro-batch and the sources that it is of."""
        sources = _noise(recipe, -(-size // recipe.augment.variations))
        rows = torch.arange(size) // recipe.augment.variations
        variations = replace(sources[rows], keys=torch.arange(size), parents=sources.keys[rows])
        device = self._accelerator.device
        judge(sources, variations, parts.clip, parts.ask_teacher, recipe.filter, device, micro_batch)


def _noise(recipe: Recipe, count: int) -> ImageBatch:
    """Sources of random pixels."""
    size = recipe.teacher.image_size
    draw = torch.Generator().manual_seed(recipe.seed)
    keys = torch.arange(count) * (recipe.augment.variations + 1)
    return ImageBatch(
        images=torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draw),
        labels=torch.arange(count) % len(recipe.class_names),
        keys=keys,
        parents=torch.full_like(keys, -1),
        seeds=torch.zeros_like(keys),
    )
