"""The last step of a run: measure the student and the banks, once, and put the figures together."""

import hashlib
import math
import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from engine.bank.reader import BankReader
from engine.datasets.config import load_test_set
from engine.models.priors import PROMPT, ClipModel
from engine.networks import LoadedPair
from engine.progress import Progress
from engine.recipe import Recipe
from engine.report.counts import count_images
from engine.report.summary import Summary
from engine.seeding import generator
from engine.stages.evaluate import evaluate
from engine.stages.filter import mean_pairwise_distance

MEASURED_IMAGES = 5000


def summarize(
    recipe: Recipe,
    pair: LoadedPair,
    clip: ClipModel | None,
    banks: Sequence[BankReader],
    accelerator: Accelerator,
    progress: Progress,
    start: float,
) -> Summary:
    """The summary; `start` is the value of time.perf_counter() at which the run's wall clock stood at 0.

    `clip`: by what the first bank's images are measured, too; None leaves those figures out.
    """
    test_set, reason = load_test_set(recipe.evaluate)
    result = None
    if test_set is not None:
        with progress.stage("evaluate", total=len(test_set.labels), unit="images") as stage:
            result = evaluate(pair.teacher, pair.student, test_set.images, test_set.labels, accelerator)
            stage.advance(len(test_set.labels))
    counts = count_images(bank.rows(number) for bank in banks for number in bank.numbers)
    clip_agreement, distance = (None, None) if clip is None else _seen_by_clip(recipe, banks[0], clip)
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
        images_synthesized=counts.synthesized.images,
        images_augmented=counts.augmented.images,
        images_accepted=counts.accepted.images,
        acceptance_rate=counts.acceptance_rate,
        label_agreement=counts.label_agreement,
        clip_agreement=clip_agreement,
        mean_pairwise_clip_distance=distance,
        seconds_by_stage={name: round(seconds, 2) for name, seconds in progress.seconds.items()},
        images_per_second=(counts.synthesized.images + counts.accepted.images) / wall_seconds,
        wall_seconds=wall_seconds,
        images_sha256=_sha256(banks),
        warning=counts.agreements.warning,
    )


def _sha256(banks: Sequence[BankReader]) -> str:
    if len(banks) == 1:
        return banks[0].images_sha256
    return hashlib.sha256(" ".join(bank.images_sha256 for bank in banks).encode()).hexdigest()


def _seen_by_clip(recipe: Recipe, bank: BankReader, clip: ClipModel) -> tuple[float, float | None]:
    """Zero-shot agreement with the labels and mean pairwise distance, of at most MEASURED_IMAGES images."""
    images, labels = _some_images(bank, generator(recipe.seed, "measured-images"))
    chunks = images.split(recipe.filter.images_at_once)
    embeddings = torch.cat([clip.embed_images(chunk).cpu() for chunk in chunks])
    captions = clip.embed_texts([PROMPT.format(name) for name in recipe.class_names]).cpu()
    agrees = (embeddings @ captions.T).argmax(1) == labels
    distance = mean_pairwise_distance(embeddings)
    return agrees.double().mean().item(), None if math.isnan(distance) else distance


def _some_images(bank: BankReader, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """At most MEASURED_IMAGES of the bank, uint8 [N, 3, H, W], and their labels."""
    spans = {number: bank.spans(number) for number in bank.numbers}
    places = [(number, place) for number, span in spans.items() for place in range(len(span))]
    images, labels = [], []
    chosen = torch.randperm(len(places), generator=draw)[:MEASURED_IMAGES].sort().values.tolist()
    for number in bank.numbers:
        mine = [places[row][1] for row in chosen if places[row][0] == number]
        images.append(torch.from_numpy(bank.images(number, mine)).permute(0, 3, 1, 2))
        labels.append(torch.from_numpy(spans[number].labels[mine]))
    return torch.cat(images), torch.cat(labels)
