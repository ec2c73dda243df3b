"""One shard's images: a synthesis batch, its variations, and what the filter keeps of them."""

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from engine.assembly import Assembly
from engine.bank.rows import Rows
from engine.errors import OutOfMemoryError
from engine.lanes import Lane, Step, own_stream, threads_of, torch_threads
from engine.models.classifier import LUMA
from engine.pipeline import pipelined
from engine.progress import Progress
from engine.recipe import Recipe
from engine.stages.augment import augment
from engine.stages.batch import ImageBatch
from engine.stages.filter import Verdict, classify, judge
from engine.stages.micro_batch import MicroBatch, is_out_of_memory
from engine.stages.synthesize import Adversary, Synthesizer


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a synthesis batch became."""

    sources: ImageBatch
    source_top1: Tensor  # int64 [S], the teacher's class
    source_confidence: Tensor  # float32 [S], its probability
    variations: ImageBatch | None  # None where nothing is augmented
    verdict: Verdict | None

    def rows(self) -> Rows:
        """Everything known of each image, in ascending order of the keys."""
        count = len(self.sources)
        columns = {
            "keys": self.sources.keys,
            "labels": self.sources.labels,
            "parents": self.sources.parents,
            "seeds": self.sources.seeds,
            "similarity": torch.full((count,), torch.nan),
            "passes_clip": torch.ones(count, dtype=torch.bool),
            "kept": torch.ones(count, dtype=torch.bool),
            "teacher_top1": self.source_top1,
            "confidence": self.source_confidence,
        }
        if self.variations is not None and self.verdict is not None:
            for name in columns:
                owner = self.verdict if hasattr(self.verdict, name) else self.variations
                columns[name] = torch.cat([columns[name], getattr(owner, name)])
        order = columns["keys"].argsort()
        return Rows(**{name: column[order].numpy() for name, column in columns.items()})

    def kept_images(self) -> np.ndarray:
        """uint8 [K, H, W, 3] of the rows that are kept, in their order."""
        keys, images = self.sources.keys, self.sources.images
        if self.variations is not None and self.verdict is not None:
            kept = self.variations[self.verdict.kept]
            keys, images = torch.cat([keys, kept.keys]), torch.cat([images, kept.images])
        return images[keys.argsort()].permute(0, 2, 3, 1).contiguous().numpy()


class _StoppedError(Exception):
    """Nobody waits for the shard any more."""


class Generation:
    """The stages from the teacher to a shard. `synthesizer` is the whole state.

    Each network has one stage that runs it, so that stages of different shards may run side by side.
    """

    def __init__(
        self,
        recipe: Recipe,
        parts: Assembly,
        accelerator: Accelerator,
        progress: Progress,
    ) -> None:
        self.recipe, self.parts, self.accelerator, self.progress = recipe, parts, accelerator, progress
        self.synthesizer = Synthesizer(
            parts.teacher,
            recipe.synthesize,
            image_size=recipe.teacher.image_size,
            seed=recipe.seed,
            accelerator=accelerator,
            captured=recipe.compute.cuda_graphs,
            class_weights=recipe.class_weights,
            views=recipe.synthesis_views,
        )
        self.augment_batch = MicroBatch("augment", recipe.augment.images_at_once)
        self.filter_batch = MicroBatch("filter", recipe.filter.images_at_once)
        self._stopping = threading.Event()

    def announce(self, batches: int) -> None:
        """Tells the progress bars of so many batches to come."""
        sources = batches * self.recipe.synthesize.batch_size
        self.progress.announce("synthesize", total=sources, unit="images")
        if self.parts.prior is not None:
            variations = sources * self.recipe.augment.variations
            self.progress.announce("augment", total=variations, unit="images")
            self.progress.announce("filter", total=variations, unit="images")

    def make(self, index: int, adversary: Adversary | None = None, *, independent: bool = False) -> Made:
        """Batch number `index`; `independent`: a function of (seed, index) whatever batches went before."""
        return self._filtered(self._augmented(self._sources(index, adversary, independent)))

    def made(self, numbers: Iterator[int]) -> Generator[tuple[int, Made | Exception], None, None]:
        """The batches of `numbers`, made independently, in that order; each is the same whenever it is made.

        What a batch raises stands in its place. Where `parts` has several lanes, they work side by side, each
        in a thread, on consecutive batches, of which at most one more than lanes are in memory; `numbers` may
        block and is asked by another thread, see `pipelined`.
        """
        lanes = self.parts.lanes
        if len(lanes) == 1:
            for number in numbers:
                yield number, _attempted(self._lane(lanes[0]), number)
            return
        around = partial(own_stream, self.accelerator.device)
        stages = [self._lane(lane) for lane in lanes]
        threads = torch.get_num_threads()
        try:
            yield from pipelined(numbers, stages, around=around, stopping=self._stopping)
        finally:
            self._stopping.clear()
            torch.set_num_threads(threads)  # what later threads begin with is the last count set in any

    def _lane(self, lane: Lane) -> Callable[[Any], Any]:
        """The steps of a lane, one after the other, as one function."""
        steps: dict[Step, Callable[[Any], Any]] = {
            "synthesize": lambda number: self._sources(number, None, independent=True),
            "augment": self._augmented,
            "filter": self._filtered,
        }

        def run(value: Any) -> Any:
            for step in lane.steps:
                value = steps[step](value)
            return value

        return run

    def _sources(self, index: int, adversary: Adversary | None, independent: bool) -> ImageBatch:
        try:
            with torch_threads(threads_of(self.parts.lanes, "synthesize")):
                return self._synthesize(index, adversary, independent)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            size = self.recipe.synthesize.batch_size
            raise OutOfMemoryError(
                f"synthesize: out of memory with {size} images at once; give a lower synthesize.batch_size "
                "(it is not halved by itself, as a batch of another size makes other images)"
            ) from error

    def _augmented(self, sources: ImageBatch) -> tuple[ImageBatch, ImageBatch | None]:
        """The sources and their variations."""
        if self.parts.prior is None:
            return sources, None
        with torch_threads(threads_of(self.parts.lanes, "augment")):
            return sources, self._augment(sources)

    def _filtered(self, found: tuple[ImageBatch, ImageBatch | None]) -> Made:
        sources, variations = found
        ask, device = self.parts.ask_teacher, self.accelerator.device
        with torch_threads(threads_of(self.parts.lanes, "filter")):
            top1, confidence = classify(sources.images, ask, self.filter_batch, device)
            return Made(
                sources=sources,
                source_top1=top1,
                source_confidence=confidence,
                variations=variations,
                verdict=None if variations is None else self._judge(sources, variations),
            )

    def _require_wanted(self) -> None:
        if self._stopping.is_set():
            raise _StoppedError

    def _synthesize(self, index: int, adversary: Adversary | None, independent: bool) -> ImageBatch:
        config = self.recipe.synthesize
        steps = config.steps + (config.warmup_steps if self.synthesizer.needs_warmup else 0)
        taken = 0
        with self.progress.stage("synthesize", total=config.batch_size, unit="images") as stage:

            def on_step(count: int) -> None:
                nonlocal taken
                self._require_wanted()
                shown = config.batch_size * taken // steps
                taken += count
                stage.advance(config.batch_size * taken // steps - shown)

            return self.synthesizer.batch(
                index,
                key_stride=self.recipe.augment.variations + 1,
                adversary=adversary,
                independent=independent,
                on_step=on_step,
            )

    def _augment(self, sources: ImageBatch) -> ImageBatch:
        config, parts = self.recipe.augment, self.parts
        assert parts.prior is not None
        made = []
        with self.progress.stage("augment", total=len(sources) * config.variations, unit="images") as stage:
            for batch in augment(
                sources,
                parts.prior,
                config,
                seed=self.recipe.seed,
                class_tokens=parts.class_tokens,
                device=self.accelerator.device,
                micro_batch=self.augment_batch,
            ):
                self._require_wanted()
                if self.recipe.teacher.in_channels == 1:
                    batch = replace(batch, images=greyed(batch.images))
                made.append(batch)
                stage.advance(len(batch))
        return ImageBatch.cat(made)

    def _judge(self, sources: ImageBatch, variations: ImageBatch) -> Verdict:
        with self.progress.stage("filter", total=len(variations), unit="images") as stage:
            verdict = judge(
                sources,
                variations,
                self.parts.clip,
                self.parts.ask_teacher,
                self.recipe.filter,
                self.accelerator.device,
                self.filter_batch,
                self.recipe.compute.runtime_precision,
            )
            stage.advance(len(variations))
            stage.note(f"kept {verdict.kept.double().mean():.0%}")
        return verdict


def _attempted(function: Callable[[int], Made], number: int) -> Made | Exception:
    try:
        return function(number)
    except Exception as error:
        return error


def greyed(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W]: the luma of RGB images uint8 [B, 3, H, W], rounded, in three equal channels."""
    weights = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    luma = (images * weights).sum(1, keepdim=True).round().to(torch.uint8)
    return luma.expand_as(images).contiguous()
