"""Make the images of shards: run the stages in order, or overlap the stages of consecutive shards."""

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from engine.config.recipe import Recipe
from engine.generation.overlap import (
    StageGroup,
    overlapped,
    own_stream,
    single_group,
    thread_counts,
    torch_threads,
)
from engine.generation.stages import STAGES, GeneratedBatch, Request, Stage, StageContext
from engine.generation.views import ViewStore
from engine.hardware import SharedCores
from engine.networks import OpenNetworks
from engine.progress import Progress
from engine.runtime.micro_batch import MicroBatch
from engine.stages.synthesis.synthesizer import Adversary, Synthesizer


class ShardGenerator:
    """Runs the stages from the teacher to a shard. `synthesizer` holds all of its state."""

    def __init__(
        self,
        recipe: Recipe,
        networks: OpenNetworks,
        accelerator: Accelerator,
        progress: Progress,
        groups: tuple[StageGroup, ...] | None = None,
        cores: SharedCores | None = None,
    ) -> None:
        """Create a generator; without `groups` the stages do not overlap, without `cores` all threads run."""
        self.recipe, self.progress = recipe, progress
        self.groups = groups or single_group(recipe.compute)
        self.synthesizer = Synthesizer(
            networks.teacher,
            recipe.synthesize,
            image_size=recipe.teacher.size,
            seed=recipe.seed,
            accelerator=accelerator,
            cuda_graph=recipe.compute.cuda_graphs,
            class_weights=recipe.class_weights,
            class_embeddings=networks.class_texts,
            views=recipe.synthesis_views,
        )
        self.context = StageContext(
            recipe=recipe,
            networks=networks,
            accelerator=accelerator,
            synthesizer=self.synthesizer,
            micro_batches={
                stage.name: MicroBatch(stage.name, getattr(recipe, stage.name).images_at_once)
                for stage in STAGES
                if stage.has_micro_batch
            },
            stopping=threading.Event(),
            cores=cores,
        )
        self._threads = thread_counts(self.groups)
        self.views = (
            ViewStore(recipe, networks, accelerator.device, progress) if recipe.stored_views else None
        )

    def make(
        self, index: int, adversary: Adversary | None = None, *, independent: bool = False
    ) -> GeneratedBatch:
        """Make batch `index`; if `independent`, as a function of (seed, index) alone."""
        request = Request(index=index, adversary=adversary, independent=independent)
        batch: GeneratedBatch = self._run(STAGES, request)
        return batch

    def generate(
        self, numbers: Iterator[int]
    ) -> Generator[tuple[int, GeneratedBatch | Exception], None, None]:
        """Yield (number, its independent batch or the exception that it raised), in order.

        With several groups of stages, each group has a thread and works on another batch; at most one batch
        more than groups is in memory. `numbers` may block; another thread reads it, see `overlapped`.
        """
        if len(self.groups) == 1:
            for number in numbers:
                yield number, _attempt(self._runner(self.groups[0]), number)
            return
        around = partial(own_stream, self.context.accelerator.device)
        runs = [self._runner(group) for group in self.groups]
        threads = torch.get_num_threads()
        try:
            yield from overlapped(numbers, runs, around=around, stopping=self.context.stopping)
        finally:
            self.context.stopping.clear()
            torch.set_num_threads(threads)  # a new thread starts with the last count set in any

    def _runner(self, group: StageGroup) -> Callable[[Any], Any]:
        """Return a function that runs the stages of a group; the first group takes a batch's number."""
        is_first = group.stages[0] is STAGES[0]

        def run(value: Any) -> Any:
            return self._run(group.stages, Request(index=value) if is_first else value)

        return run

    def _run(self, stages: tuple[Stage, ...], value: Any) -> Any:
        for stage in stages:
            total = stage.total(self.recipe)
            track = partial(self.progress.stage, stage.name, total=total, unit="images")
            with torch_threads(self._threads[stage.name]):
                self.context.between_steps()
                value = stage.run(self.context, value, track)
                if stage is STAGES[-1] and self.views is not None:
                    value = _with_views(value, self.views)
        return value


def _with_views(batch: GeneratedBatch, views: ViewStore) -> GeneratedBatch:
    """Add the teacher's outputs on views, in the thread of the stage that the teacher belongs to."""
    rows = batch.rows()
    return replace(batch, outputs=views.of_new_images(batch.kept_images(), rows.keys[rows.kept]))


def _attempt(function: Callable[[int], GeneratedBatch], number: int) -> GeneratedBatch | Exception:
    try:
        return function(number)
    except Exception as error:
        return error
