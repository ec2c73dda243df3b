"""Count a run's images, how often the teacher agrees with their labels, and what each omega would keep."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

from engine.bank.agreement import Agreements
from engine.bank.rows import Bool, Float, Int, Rows

OMEGAS = np.linspace(-1, 1, 2000, endpoint=False).round(3)
"""Lower edges of the bins in which similarities are counted, 0.001 apart."""
KEPT_PERCENT = range(100, 0, -10)
"""Percentages of the variations for which the acceptance curve has a point."""


class LabelAgreement(TypedDict):
    """Shares of images whose label is the teacher's top-1; None if there are no such images."""

    sources: float | None
    """Share of the synthesized images."""
    before: float | None
    """Share of all variations."""
    after_clip: float | None
    """Share of the variations that pass CLIP."""
    after: float | None
    """Share of the kept variations."""


class AcceptancePoint(TypedDict):
    """What a filter by `omega` alone keeps of all variations."""

    omega: float
    kept: float
    """Share of the variations whose similarity is at least omega."""
    label_agreement: float
    """Share of these whose label is the teacher's top-1."""


@dataclass(kw_only=True)
class LabelCount:
    """Number of images, and of images whose label is the teacher's top-1."""

    images: int = 0
    agreeing: int = 0

    def add(self, agrees: Bool) -> None:
        self.images += len(agrees)
        self.agreeing += int(agrees.sum())

    @property
    def agreement(self) -> float | None:
        return self.agreeing / self.images if self.images else None


def _empty_bins() -> Int:
    return np.zeros(len(OMEGAS), np.int64)


@dataclass(kw_only=True)
class SimilarityCount:
    """Number of images, and of images whose label is the teacher's top-1, in each bin of OMEGAS: [2000]."""

    images: Int = field(default_factory=_empty_bins)
    agreeing: Int = field(default_factory=_empty_bins)

    def add(self, similarity: Float, agrees: Bool) -> None:
        """Count the images [N] that have a similarity."""
        known = ~np.isnan(similarity)
        bins = np.searchsorted(OMEGAS.astype(np.float32), similarity[known], side="right") - 1
        bins = bins.clip(0)  # rounding may put a similarity just below -1
        self.images += np.bincount(bins, minlength=len(OMEGAS))
        self.agreeing += np.bincount(bins[agrees[known]], minlength=len(OMEGAS))

    @property
    def curve(self) -> list[AcceptancePoint] | None:
        """The acceptance curve, or None without images."""
        kept, agreeing = (counts[::-1].cumsum()[::-1] for counts in (self.images, self.agreeing))
        if not kept[0]:
            return None
        last = [np.flatnonzero(100 * kept >= percent * kept[0])[-1] for percent in KEPT_PERCENT]
        return [
            {
                "omega": float(OMEGAS[row]),
                "kept": float(kept[row] / kept[0]),
                "label_agreement": float(agreeing[row] / kept[row]),
            }
            for row in last
        ]


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Counts of the synthesized images, all variations, those that pass CLIP and the kept ones."""

    synthesized: LabelCount
    augmented: LabelCount
    passed_clip: LabelCount
    accepted: LabelCount
    by_similarity: SimilarityCount
    """All variations that have a similarity."""
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


def count_images(shards: Iterable[Rows]) -> ImageCounts:
    """Count the images over all rows of the shards."""
    synthesized, augmented, passed_clip, accepted = LabelCount(), LabelCount(), LabelCount(), LabelCount()
    by_similarity, agreements = SimilarityCount(), Agreements()
    for rows in shards:
        agreements += Agreements.of(rows)
        agrees = rows.teacher_top1 == rows.labels
        variation = rows.parents >= 0
        synthesized.add(agrees[~variation])
        augmented.add(agrees[variation])
        passed_clip.add(agrees[variation & rows.passes_clip & ~np.isnan(rows.similarity)])
        accepted.add(agrees[variation & rows.kept])
        by_similarity.add(rows.similarity[variation], agrees[variation])
    return ImageCounts(
        synthesized=synthesized,
        augmented=augmented,
        passed_clip=passed_clip,
        accepted=accepted,
        by_similarity=by_similarity,
        agreements=agreements,
    )
