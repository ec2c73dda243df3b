"""Make the batches of shards: run the stages one after the other, or overlap those of consecutive batches."""

import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from engine.config.recipe import Recipe
from engine.generation.overlap import Lane, one_lane, overlapped, own_stream, thread_counts, torch_threads
from engine.generation.stages import STAGES, GeneratedBatch, Request, Stage, StageContext
from engine.networks import OpenNetworks
from engine.progress import Progress
from engine.runtime.micro_batch import MicroBatch
from engine.stages.synthesize import Adversary, Synthesizer


class ShardGenerator:
    """The stages from the teacher to a shard. `synthesizer` is the whole state."""

    def __init__(
        self,
        recipe: Recipe,
        networks: OpenNetworks,
        accelerator: Accelerator,
        progress: Progress,
        lanes: tuple[Lane, ...] | None = None,
    ) -> None:
        """`lanes`: by default one."""
        self.recipe, self.progress = recipe, progress
        self.lanes = lanes or one_lane(recipe.compute)
        self.synthesizer = Synthesizer(
            networks.teacher,
            recipe.synthesize,
            image_size=recipe.teacher.image_size,
            seed=recipe.seed,
            accelerator=accelerator,
            cuda_graph=recipe.compute.cuda_graphs,
            class_weights=recipe.class_weights,
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
        )
        self._threads = thread_counts(self.lanes)

    def announce(self, batches: int) -> None:
        """Announce `batches` more batches to the progress bars."""
        for stage in STAGES:
            if total := batches * stage.total(self.recipe):
                self.progress.announce(stage.name, total=total, unit="images")

    def make(
        self, index: int, adversary: Adversary | None = None, *, independent: bool = False
    ) -> GeneratedBatch:
        """Make batch `index`; `independent`: as a function of (seed, index), whatever was made before."""
        request = Request(index=index, adversary=adversary, independent=independent)
        batch: GeneratedBatch = self._run(STAGES, request)
        return batch

    def generate(
        self, numbers: Iterator[int]
    ) -> Generator[tuple[int, GeneratedBatch | Exception], None, None]:
        """Yield (number, its independently made batch or the exception that it raised), in order.

        Several lanes work at the same time, each in a thread, on consecutive batches, of which at most one
        more than lanes are in memory. `numbers` may block and is read by another thread, see `overlapped`.
        """
        if len(self.lanes) == 1:
            for number in numbers:
                yield number, _attempt(self._lane(self.lanes[0]), number)
            return
        around = partial(own_stream, self.context.accelerator.device)
        runs = [self._lane(lane) for lane in self.lanes]
        threads = torch.get_num_threads()
        try:
            yield from overlapped(numbers, runs, around=around, stopping=self.context.stopping)
        finally:
            self.context.stopping.clear()
            torch.set_num_threads(threads)  # what later threads begin with is the last count set in any

    def _lane(self, lane: Lane) -> Callable[[Any], Any]:
        """Return the stages of a lane, one after the other, as one function; the first gets a number."""

        def run(value: Any) -> Any:
            return self._run(lane.stages, Request(index=value) if lane.stages[0] is STAGES[0] else value)

        return run

    def _run(self, stages: tuple[Stage, ...], value: Any) -> Any:
        for stage in stages:
            total = stage.total(self.recipe)
            track = partial(self.progress.stage, stage.name, total=total, unit="images")
            with torch_threads(self._threads[stage.name]):
                value = stage.run(self.context, value, track)
        return value


def _attempt(function: Callable[[int], GeneratedBatch], number: int) -> GeneratedBatch | Exception:
    try:
        return function(number)
    except Exception as error:
        return error
