"""What a bank's rows add up to."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.bank.agreement import Agreements
from engine.bank.rows import Rows
from engine.report.summary import LabelAgreement


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
