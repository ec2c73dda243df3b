"""The stages that make a shard, in order. A new stage is a module with its math and one entry in `STAGES`.

A stage owns the networks that it runs, so stages of different shards may run at the same time.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from engine import progress
from engine.bank.rows import Rows
from engine.bank.views import TeacherOutputs
from engine.config.recipe import Recipe
from engine.errors import OutOfMemoryError
from engine.hardware import SharedCores
from engine.models.classifier import LUMA
from engine.networks import OpenNetworks
from engine.runtime.micro_batch import MicroBatch, is_out_of_memory
from engine.stages.augment import augment
from engine.stages.batch import ImageBatch
from engine.stages.filter import FilterResult, classify, filter_variations
from engine.stages.synthesis.synthesizer import Adversary, Synthesizer

NOTE_INTERVAL = 1.0
"""Minimum seconds between two readings of the teacher's agreement; each waits for the device."""

Track = Callable[[], AbstractContextManager[progress.Stage]]
"""Opens the progress of a stage for one batch."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The input of the first stage: which batch to make."""

    index: int
    adversary: Adversary | None = None
    independent: bool = True
    """Whether the batch depends only on (seed, index), and not on earlier batches."""


@dataclass(frozen=True, kw_only=True)
class GeneratedBatch:
    """A batch after all stages, on the CPU."""

    sources: ImageBatch
    source_top1: Tensor  # int64 [S], the teacher's class
    source_confidence: Tensor  # float32 [S], its probability
    variations: ImageBatch | None  # None if nothing is augmented
    result: FilterResult | None
    outputs: TeacherOutputs | None = None
    """The teacher's on views of the kept images; None if none are stored."""

    def rows(self) -> Rows:
        """Return the row of each image, in ascending order of the keys."""
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
        if self.variations is not None and self.result is not None:
            for name in columns:
                owner = self.result if hasattr(self.result, name) else self.variations
                columns[name] = torch.cat([columns[name], getattr(owner, name)])
        order = columns["keys"].argsort()
        return Rows(**{name: column[order].numpy() for name, column in columns.items()})

    def kept_images(self) -> np.ndarray:
        """Return the kept images, uint8 [K, H, W, 3], in the order of `rows`."""
        keys, images = self.sources.keys, self.sources.images
        if self.variations is not None and self.result is not None:
            kept = self.variations[self.result.kept]
            keys, images = torch.cat([keys, kept.keys]), torch.cat([images, kept.images])
        return images[keys.argsort()].permute(0, 2, 3, 1).contiguous().numpy()


class StoppedError(Exception):
    """The shard is no longer needed."""


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What the stages of one process share. `synthesizer` holds all state."""

    recipe: Recipe
    networks: OpenNetworks
    accelerator: Accelerator
    synthesizer: Synthesizer
    micro_batches: Mapping[str, MicroBatch]
    """Micro-batch of each stage whose section of the recipe has `micro_batch`, by the stage's name."""
    stopping: threading.Event
    cores: SharedCores | None = None
    """Leaves cores to other processes between the steps of a stage; None uses all threads."""

    def between_steps(self) -> None:
        """Leave busy cores to other processes. Raise StoppedError once the batches are no longer needed."""
        if self.cores is not None:
            self.cores.adjust()
        if self.stopping.is_set():
            raise StoppedError


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a shard. Each network belongs to one stage."""

    name: str
    """Name in progress, timings and recipe."""
    total: Callable[[Recipe], int]
    """Number of images of a batch that go through it; 0 if the recipe has no such stage."""
    run: Callable[[StageContext, Any, Track], Any]
    """Maps the result of the previous stage. The first stage takes a `Request`, the last one returns a
    `GeneratedBatch`."""
    has_micro_batch: bool = False
    """Whether its section of the recipe has `micro_batch`, which may be `auto`."""
    is_light: bool = False
    """Whether one CPU thread is enough."""


def _sources(recipe: Recipe) -> int:
    return recipe.synthesize.batch_size


def _variations(recipe: Recipe) -> int:
    return 0 if recipe.augment.method == "none" else _sources(recipe) * recipe.augment.variations


def _synthesize(context: StageContext, request: Request, track: Track) -> ImageBatch:
    """Synthesize the sources of a batch."""
    try:
        return _invert(context, request, track)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = context.recipe.synthesize.batch_size
        raise OutOfMemoryError(
            f"synthesize: out of memory with {size} images at once; lower synthesize.batch_size "
            "(it is not halved automatically, because a different batch size makes different images)"
        ) from error


def _invert(context: StageContext, request: Request, track: Track) -> ImageBatch:
    config, synthesizer = context.recipe.synthesize, context.synthesizer
    with track() as stage:
        if synthesizer.needs_warmup:
            with stage.preparation("warming up the generator") as show:
                synthesizer.warm_up(_counting(context, config.first_steps, show))
        shown, noted = 0, time.monotonic()

        def advance(share: float) -> None:
            nonlocal shown, noted
            if share == 1 or time.monotonic() > noted + NOTE_INTERVAL:
                noted = time.monotonic()
                if (agreement := synthesizer.agreement) is not None:
                    stage.note(f"teacher agrees with {progress.percent(agreement)}")
            images = int(config.batch_size * share)
            stage.advance(images - shown)
            shown = images

        return synthesizer.batch(
            request.index,
            key_stride=context.recipe.augment.variations + 1,
            adversary=request.adversary,
            independent=request.independent,
            on_step=_counting(context, config.chosen.steps, advance),
        )


def _counting(context: StageContext, steps: int, report: Callable[[float], None]) -> Callable[[int], None]:
    """Return a function to call after each of `steps` steps, which reports the finished share."""
    done = 0

    def on_step(count: int) -> None:
        nonlocal done
        context.between_steps()
        done += count
        report(done / steps)

    return on_step


def _augment(
    context: StageContext, sources: ImageBatch, track: Track
) -> tuple[ImageBatch, ImageBatch | None]:
    """Make variations of the sources; return both."""
    recipe, networks = context.recipe, context.networks
    if networks.prior is None:
        return sources, None
    batches = []
    with track() as stage:
        for batch in augment(
            sources,
            networks.prior,
            recipe.augment,
            seed=recipe.seed,
            class_tokens=networks.class_tokens,
            device=context.accelerator.device,
            micro_batch=context.micro_batches[AUGMENT.name],
        ):
            context.between_steps()
            if recipe.teacher.is_grey:
                batch = replace(batch, images=to_gray(batch.images))
            batches.append(batch)
            stage.advance(len(batch))
    return sources, ImageBatch.cat(batches)


def _filter(
    context: StageContext, images: tuple[ImageBatch, ImageBatch | None], track: Track
) -> GeneratedBatch:
    """Classify the sources and filter the variations."""
    sources, variations = images
    teacher, device = context.networks.teacher_forward, context.accelerator.device
    top1, confidence = classify(sources.images, teacher, context.micro_batches[FILTER.name], device)
    return GeneratedBatch(
        sources=sources,
        source_top1=top1,
        source_confidence=confidence,
        variations=variations,
        result=None if variations is None else _filter_variations(context, sources, variations, track),
    )


def _filter_variations(
    context: StageContext, sources: ImageBatch, variations: ImageBatch, track: Track
) -> FilterResult:
    with track() as stage:
        result = filter_variations(
            sources,
            variations,
            context.networks.clip,
            context.networks.class_texts,
            context.networks.teacher_forward,
            context.recipe.filter,
            context.accelerator.device,
            context.micro_batches[FILTER.name],
            context.recipe.compute.runtime_precision,
        )
        stage.advance(len(variations))
        stage.note(f"kept {result.kept.double().mean():.0%}")
    return result


def to_gray(images: Tensor) -> Tensor:
    """Return the rounded luma of RGB images uint8 [B, 3, H, W], in three equal channels of the same shape."""
    weights = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    luma = (images * weights).sum(1, keepdim=True).round().to(torch.uint8)
    return luma.expand_as(images).contiguous()


SYNTHESIZE = Stage(name="synthesize", total=_sources, run=_synthesize)
AUGMENT = Stage(name="augment", total=_variations, run=_augment, has_micro_batch=True)
FILTER = Stage(name="filter", total=_variations, run=_filter, has_micro_batch=True, is_light=True)
STAGES = (SYNTHESIZE, AUGMENT, FILTER)


def announce(progress: progress.Progress, recipe: Recipe, batches: int) -> None:
    """Announce `batches` more batches to the progress bars of the stages."""
    for stage in STAGES:
        if total := batches * stage.total(recipe):
            progress.announce(stage.name, total=total, unit="images")
