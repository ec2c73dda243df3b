"""Measure the student and the banks at the end of a run: summary.json and the table on the terminal."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from accelerate import Accelerator
from rich.table import Table

from engine.atomic import replacing
from engine.bank.reader import BankReader
from engine.config.recipe import Recipe
from engine.datasets.test_set import open_test_set
from engine.hardware import SharedCores
from engine.models.priors import PROMPT, ClipModel
from engine.networks import LoadedPair, OpenNetworks
from engine.progress import Progress, clock
from engine.seeding import generator
from engine.stages.evaluate import evaluate, in_float32
from engine.stages.filter import mean_pairwise_distance
from engine.training.image_counts import AcceptancePoint, LabelAgreement, count_images
from engine.training.run_folder import SOURCES, VARIATIONS

FILE_NAME = "summary.json"
TIMED_IMAGES = 32
"""Images on which the ending is timed."""
MEASURED_IMAGES = 5000
"""Most images of a bank that CLIP measures."""


class MeasuredOn(TypedDict):
    """The test set."""

    data: str
    """As `evaluate.data` names it."""
    format: str
    images: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures of a run: shares in [0, 1], times in seconds. What was not measured is None."""

    recipe: str
    seed: int
    device: str
    runtime: str
    precision: str
    teacher_top1: float | None
    student_top1: float | None
    agreement: float | None
    """Share of test images for which teacher and student predict the same class."""
    accuracy_reason: str | None
    """Why the three figures above are None; None if they are measured."""
    teacher_top5: float | None = None
    student_top5: float | None = None
    """Share of test images whose label is among the five likeliest of six or more classes, else None."""
    per_class: dict[str, dict[str, float | None]] | None = None
    """For each class, the number of test images and the top-1 of teacher and student on them."""
    test_set: MeasuredOn | None = None
    images_synthesized: int
    images_augmented: int
    images_accepted: int
    acceptance_rate: float | None
    """images_accepted / images_augmented; None if nothing was augmented."""
    label_agreement: LabelAgreement
    clip_agreement: float | None
    """Share of the bank's images whose zero-shot CLIP class is the label; None without CLIP."""
    mean_pairwise_clip_distance: float | None
    """Mean of 1 - cosine of CLIP embeddings over pairs of the bank's images; None without CLIP or pairs."""
    acceptance_curve: list[AcceptancePoint] | None = None
    """For 100 %, 90 %, ... 10 % of the variations, the largest omega, in steps of 0.001, that keeps at least
    that share; None if no similarity was measured."""
    seconds_by_stage: dict[str, float]
    images_per_second: float
    """Images in the bank per second of the run."""
    wall_seconds: float
    images_sha256: str
    warning: str | None = None
    """What seems wrong with the images or the accuracies; None if nothing does."""

    def __post_init__(self) -> None:
        for name in ("teacher_top1", "student_top1", "agreement"):
            missing = getattr(self, name) is None
            if missing != (self.accuracy_reason is not None):
                raise ValueError(f"set either {name} or accuracy_reason, and not both")

    def write(self, folder: Path) -> None:
        """Write `folder`/summary.json, atomically."""
        with replacing(folder / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def summarize(
    recipe: Recipe,
    pair: LoadedPair,
    clip: ClipModel | None,
    banks: Sequence[BankReader],
    accelerator: Accelerator,
    progress: Progress,
    cores: SharedCores,
    start: float,
) -> Summary:
    """Evaluate the student, measure the banks, and return the summary.

    Args:
        clip: measures images of the first bank; without it, those figures are None.
        cores: leaves cores to other processes between batches.
        start: time.perf_counter() at the start of the run, less the seconds of earlier commands.
    """
    measured, doubt = _accuracies(recipe, pair, accelerator, progress, cores)
    counts = count_images(bank.rows(number) for bank in banks for number in bank.numbers)
    clip_agreement, distance = (None, None) if clip is None else _clip_figures(recipe, banks[0], clip)
    wall_seconds = time.perf_counter() - start
    return Summary(
        recipe=recipe.name,
        seed=recipe.seed,
        device=accelerator.device.type,
        runtime=recipe.compute.runtime,
        precision=recipe.compute.precision,
        **measured,
        images_synthesized=counts.synthesized.images,
        images_augmented=counts.augmented.images,
        images_accepted=counts.accepted.images,
        acceptance_rate=counts.acceptance_rate,
        label_agreement=counts.label_agreement,
        clip_agreement=clip_agreement,
        mean_pairwise_clip_distance=distance,
        acceptance_curve=counts.by_similarity.curve,
        seconds_by_stage={name: round(seconds, 2) for name, seconds in progress.seconds.items()},
        images_per_second=(counts.synthesized.images + counts.accepted.images) / wall_seconds,
        wall_seconds=wall_seconds,
        images_sha256=_sha256(banks),
        warning="; ".join(filter(None, (counts.agreements.warning, doubt))) or None,
    )


def _accuracies(
    recipe: Recipe, pair: LoadedPair, accelerator: Accelerator, progress: Progress, cores: SharedCores
) -> tuple[dict[str, Any], str | None]:
    """Return the summary's fields about the test set, and a warning about the accuracies, if any."""
    size = recipe.teacher.size
    test_set, reason = open_test_set(recipe.evaluate, recipe.names, size)
    if test_set is None:
        missing = dict.fromkeys(("teacher_top1", "student_top1", "agreement"))
        return {**missing, "accuracy_reason": reason}, None

    def advance(count: int) -> None:
        cores.adjust()
        stage.advance(count)

    with (
        in_float32({"teacher": pair.teacher, "student": pair.student}, accelerator) as networks,
        progress.stage("evaluate", total=len(test_set), unit="images") as stage,
    ):
        result = evaluate(networks, test_set.batches(), len(recipe.names), advance)
    measured = {
        **result.shares(),
        "accuracy_reason": None,
        "per_class": result.per_class(recipe.names),
        "test_set": MeasuredOn(data=test_set.data, format=test_set.format, images=result.images),
    }
    return measured, result.warning


def ending_seconds(recipe: Recipe, opened: OpenNetworks, accelerator: Accelerator, most: int) -> float:
    """Return about how long the evaluation, and CLIP's figures of at most `most` images, will take.

    The networks are timed on noise. A few images of the test set are decoded; no network sees them.
    """
    size = recipe.teacher.size
    images = torch.randint(0, 256, (TIMED_IMAGES, 3, *size), dtype=torch.uint8)
    clip = opened.clip
    seconds = 0.0 if clip is None else min(most, MEASURED_IMAGES) * _timed(lambda: clip.embed_images(images))
    test_set, _ = open_test_set(recipe.evaluate, recipe.names, size)
    if test_set is None:
        return seconds
    decoding = _timed(lambda: next(test_set.batches(TIMED_IMAGES), None))
    batch = images, torch.zeros(TIMED_IMAGES, dtype=torch.long)
    with in_float32({"teacher": opened.teacher, "student": opened.student}, accelerator) as networks:
        forward = _timed(lambda: evaluate(networks, [batch], len(recipe.names)))
    return seconds + (decoding + forward) * len(test_set)


def _timed(work: Callable[[], object]) -> float:
    """Return the seconds of `work` for one of TIMED_IMAGES images, after a first time that does not count."""
    work()
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / TIMED_IMAGES


def _sha256(banks: Sequence[BankReader]) -> str:
    if len(banks) == 1:
        return banks[0].images_sha256
    return hashlib.sha256(" ".join(bank.images_sha256 for bank in banks).encode()).hexdigest()


def _clip_figures(recipe: Recipe, bank: BankReader, clip: ClipModel) -> tuple[float, float | None]:
    """Return zero-shot agreement and mean pairwise distance of at most MEASURED_IMAGES images."""
    images, labels = _sample_images(bank, generator(recipe.seed, "measured-images"))
    chunks = images.split(recipe.filter.images_at_once)
    embeddings = torch.cat([clip.embed_images(chunk).cpu() for chunk in chunks])
    captions = clip.embed_texts([PROMPT.format(name) for name in recipe.names]).cpu()
    agrees = (embeddings @ captions.T).argmax(1) == labels
    distance = mean_pairwise_distance(embeddings)
    return agrees.double().mean().item(), None if math.isnan(distance) else distance


def _sample_images(bank: BankReader, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return at most MEASURED_IMAGES of the bank, uint8 [N, 3, H, W], and their labels, int64 [N]."""
    spans = {number: bank.spans(number) for number in bank.numbers}
    positions = [(number, row) for number, span in spans.items() for row in range(len(span))]
    images, labels = [], []
    chosen = torch.randperm(len(positions), generator=draw)[:MEASURED_IMAGES].sort().values.tolist()
    for number in bank.numbers:
        rows = [positions[i][1] for i in chosen if positions[i][0] == number]
        images.append(torch.from_numpy(bank.images(number, rows)).permute(0, 3, 1, 2))
        labels.append(torch.from_numpy(spans[number].labels[rows]))
    return torch.cat(images), torch.cat(labels)


def results_table(summary: Summary, folder: Path) -> Table:
    """Return the summary as a table of two columns. What was not measured is a dash or the reason."""
    table = Table(title=f"{summary.recipe}, seed {summary.seed}", show_header=False, title_justify="left")
    rows = {
        "test accuracy": summary.accuracy_reason
        or f"teacher {_percent(summary.teacher_top1)}, student {_percent(summary.student_top1)}",
        "top-5 accuracy": f"teacher {_percent(summary.teacher_top5)},"
        f" student {_percent(summary.student_top5)}",
        "agreement": _percent(summary.agreement),
        "images": _images(summary),
        "label agreement": ", ".join(
            f"{name.replace('_', ' ')} {_percent(share)}"
            for name, share in (
                ("sources", summary.label_agreement["sources"]),
                ("before", summary.label_agreement["before"]),
                ("after_clip", summary.label_agreement["after_clip"]),
                ("after", summary.label_agreement["after"]),
            )
            if share is not None
        ),
        **({"filter": _acceptance(summary.acceptance_curve)} if summary.acceptance_curve else {}),
        "seconds": ", ".join(f"{stage} {spent:.1f}" for stage, spent in summary.seconds_by_stage.items()),
        "whole run": f"{clock(summary.wall_seconds)} on {summary.device} in {summary.precision},"
        f" runtime {summary.runtime}, {summary.images_per_second:.1f} images/s",
        "files": str(folder),
    }
    if summary.student_top5 is None:
        del rows["top-5 accuracy"]
    if summary.warning:
        rows["warning"] = summary.warning
    for picture in (VARIATIONS, SOURCES):
        if (folder / picture).is_file():
            rows["picture"] = picture
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _images(summary: Summary) -> str:
    if not summary.images_augmented:
        return f"{summary.images_synthesized} synthesized, no variations"
    return (
        f"{summary.images_synthesized} synthesized, {summary.images_augmented} augmented,"
        f" {summary.images_accepted} accepted ({_percent(summary.acceptance_rate)})"
    )


def _acceptance(curve: Sequence[AcceptancePoint]) -> str:
    """Say what the omegas that keep about 90, 50 and 10 % of the variations are worth."""
    words = ("teacher agrees with ", "", "")
    return "omega " + "; ".join(
        f"{point['omega']:g} keeps {point['kept']:.0%}, {text}{point['label_agreement']:.1%}"
        for text, point in zip(words, curve[1::4], strict=True)
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
