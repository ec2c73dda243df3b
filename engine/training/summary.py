"""The last step of a run: measure the student and the banks, once, and put the figures together."""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from rich.table import Table

from engine.assembly import Pair
from engine.atomic import replacing
from engine.bank.agreement import Agreements
from engine.bank.reader import BankReader
from engine.bank.rows import Rows
from engine.datasets.config import load_test_set
from engine.models.priors import PROMPT, ClipModel
from engine.progress import Progress, clock
from engine.recipe import Recipe
from engine.seeding import generator
from engine.stages.evaluate import evaluate
from engine.stages.filter import mean_pairwise_distance

FILE_NAME = "summary.json"


class LabelAgreement(TypedDict):
    """Shares of images whose label the teacher's top-1 confirms, null for a gate that was not there."""

    sources: float | None
    """Of the synthesized images."""
    before: float | None
    """Of all variations."""
    after_clip: float | None
    """Of those that the similarity gate kept."""
    after: float | None
    """Of those that every gate kept."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Shares in [0, 1], times in seconds. What a run could not measure is None, never left out."""

    recipe: str
    seed: int
    device: str
    runtime: str
    precision: str
    teacher_top1: float | None
    student_top1: float | None
    agreement: float | None
    """Share of test images to which teacher and student give the same class."""
    accuracy_reason: str | None
    """Why the three above are None; None where they are not."""
    images_synthesized: int
    images_augmented: int
    images_accepted: int
    acceptance_rate: float | None
    """images_accepted / images_augmented, None where nothing was augmented."""
    label_agreement: LabelAgreement
    clip_agreement: float | None
    """Share of the bank's images whose zero-shot CLIP class is the label, None without a text tower."""
    mean_pairwise_clip_distance: float | None
    """1 - cosine between CLIP embeddings, mean over pairs of the bank's images."""
    seconds_by_stage: dict[str, float]
    images_per_second: float
    """Images that went into the bank over the seconds of the run."""
    wall_seconds: float
    images_sha256: str
    warning: str | None = None
    """What is wrong with the images, None if nothing is known to be."""

    def __post_init__(self) -> None:
        for name in ("teacher_top1", "student_top1", "agreement"):
            missing = getattr(self, name) is None
            if missing != (self.accuracy_reason is not None):
                raise ValueError(f"{name} or accuracy_reason, and not both")

    def write(self, folder: Path) -> None:
        """`folder`/summary.json, whole or not at all."""
        with replacing(folder / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n", encoding="utf-8")


@dataclass(kw_only=True)
class Count:
    """Images, and those among them whose label is the teacher's top-1."""

    images: int = 0
    agreeing: int = 0

    def add(self, agrees: npt.NDArray[np.bool_]) -> None:
        self.images += len(agrees)
        self.agreeing += int(agrees.sum())

    @property
    def agreement(self) -> float | None:
        return self.agreeing / self.images if self.images else None


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of the synthesized images, of all variations, of those that pass CLIP, of those that are kept."""

    synthesized: Count
    augmented: Count
    passed_clip: Count
    accepted: Count
    agreements: Agreements

    @property
    def acceptance_rate(self) -> float | None:
        return self.accepted.images / self.augmented.images if self.augmented.images else None

    @property
    def label_agreement(self) -> LabelAgreement:
        return {
            "sources": self.synthesized.agreement,
            "before": self.augmented.agreement,
            "after_clip": self.passed_clip.agreement,
            "after": self.accepted.agreement,
        }


def count_images(shards: Iterable[Rows]) -> Counts:
    """The counts over all rows of the shards."""
    synthesized, augmented, passed_clip, accepted = Count(), Count(), Count(), Count()
    agreements = Agreements()
    for rows in shards:
        agreements += Agreements.of(rows)
        agrees = rows.teacher_top1 == rows.labels
        variation = rows.parents >= 0
        synthesized.add(agrees[~variation])
        augmented.add(agrees[variation])
        passed_clip.add(agrees[variation & rows.passes_clip & ~np.isnan(rows.similarity)])
        accepted.add(agrees[variation & rows.kept])
    return Counts(
        synthesized=synthesized,
        augmented=augmented,
        passed_clip=passed_clip,
        accepted=accepted,
        agreements=agreements,
    )


MEASURED_IMAGES = 5000


def summarize(
    recipe: Recipe,
    pair: Pair,
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


def results_table(summary: Summary, folder: Path) -> Table:
    """Two columns, what and how much; what the run could not measure is a dash with the reason."""
    table = Table(title=f"{summary.recipe}, seed {summary.seed}", show_header=False, title_justify="left")
    rows = {
        "test accuracy": summary.accuracy_reason
        or f"teacher {_percent(summary.teacher_top1)}, student {_percent(summary.student_top1)}",
        "agreement": _percent(summary.agreement),
        "images": _images(summary),
        "label agreement": ", ".join(
            f"{gate.replace('_', ' ')} {_percent(share)}"
            for gate, share in (
                ("sources", summary.label_agreement["sources"]),
                ("before", summary.label_agreement["before"]),
                ("after_clip", summary.label_agreement["after_clip"]),
                ("after", summary.label_agreement["after"]),
            )
            if share is not None
        ),
        "seconds": ", ".join(f"{stage} {spent:.1f}" for stage, spent in summary.seconds_by_stage.items()),
        "whole run": f"{clock(summary.wall_seconds)} on {summary.device} in {summary.precision},"
        f" runtime {summary.runtime}, {summary.images_per_second:.1f} images/s",
        "files": str(folder),
    }
    if summary.warning:
        rows["warning"] = summary.warning
    for what, value in rows.items():
        table.add_row(what, value)
    return table


def _images(summary: Summary) -> str:
    if not summary.images_augmented:
        return f"{summary.images_synthesized} synthesized, no variations"
    return (
        f"{summary.images_synthesized} synthesized, {summary.images_augmented} augmented,"
        f" {summary.images_accepted} accepted ({_percent(summary.acceptance_rate)})"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
