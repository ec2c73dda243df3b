"""The last step of a run: measure the student and the bank, once, and put the figures together."""

import math
import time

import torch
from accelerate import Accelerator

from engine.assembly import Assembly
from engine.datasets.config import load_test_set
from engine.memory_bank import Bank
from engine.models.priors import PROMPT, ClipModel
from engine.progress import Progress
from engine.recipe import Recipe
from engine.report.summary import Summary
from engine.seeding import generator
from engine.stages.evaluate import evaluate
from engine.stages.filter import mean_pairwise_distance
from engine.tally import Tally

MEASURED_IMAGES = 5000


def summarize(
    recipe: Recipe,
    parts: Assembly,
    bank: Bank,
    tally: Tally,
    accelerator: Accelerator,
    progress: Progress,
    start: float,
) -> Summary:
    """The summary; `start` is the value of time.perf_counter() at which the run's wall clock stood at 0."""
    test_set, reason = load_test_set(recipe.evaluate)
    result = None
    if test_set is not None:
        with progress.stage("evaluate", total=len(test_set.labels), unit="images") as stage:
            result = evaluate(parts.teacher, parts.student, test_set.images, test_set.labels, accelerator)
            stage.advance(len(test_set.labels))
    clip_agreement, distance = (None, None) if parts.clip is None else _seen_by_clip(recipe, bank, parts.clip)
    wall_seconds = time.perf_counter() - start
    return Summary(
        recipe=recipe.name,
        seed=recipe.seed,
        device=accelerator.device.type,
        runtime=recipe.compute.runtime,
        precision=recipe.compute.precision,
        teacher_top1=result and result.teacher_top1,
        student_top1=result and result.student_top1,
        agreement=result and result.agreement,
        accuracy_reason=reason,
        images_synthesized=tally.synthesized,
        images_augmented=tally.augmented,
        images_accepted=tally.accepted,
        acceptance_rate=tally.acceptance_rate,
        label_agreement=tally.label_agreement,
        clip_agreement=clip_agreement,
        mean_pairwise_clip_distance=distance,
        seconds_by_stage={name: round(seconds, 2) for name, seconds in progress.seconds.items()},
        images_per_second=len(bank) / wall_seconds,
        wall_seconds=wall_seconds,
        images_sha256=bank.sha256(),
    )


def _seen_by_clip(recipe: Recipe, bank: Bank, clip: ClipModel) -> tuple[float, float | None]:
    """Zero-shot agreement with the labels and mean pairwise distance, of at most MEASURED_IMAGES images."""
    draw = generator(recipe.seed, "measured-images")
    rows = torch.randperm(len(bank), generator=draw)[:MEASURED_IMAGES]
    chunks = bank.images[rows].split(recipe.filter.micro_batch)
    embeddings = torch.cat([clip.embed_images(chunk).cpu() for chunk in chunks])
    captions = clip.embed_texts([PROMPT.format(name) for name in recipe.class_names]).cpu()
    agrees = (embeddings @ captions.T).argmax(1) == bank.labels[rows]
    distance = mean_pairwise_distance(embeddings)
    return agrees.double().mean().item(), None if math.isnan(distance) else distance
