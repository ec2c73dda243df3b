"""What a run counts on its way, for the summary and for a checkpoint."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.report.summary import LabelAgreement
from engine.stages.filter import Verdict


@dataclass(kw_only=True)
class Tally:
    """Counts of images; `*_agreeing` are those whose label is the teacher's top-1."""

    synthesized: int = 0
    synthesized_agreeing: int = 0
    augmented: int = 0
    augmented_agreeing: int = 0
    passed_clip: int = 0
    passed_clip_agreeing: int = 0
    accepted: int = 0
    accepted_agreeing: int = 0
    wall_seconds: float = 0.0
    """Of the processes before this one, for a resumed run."""

    def add(self, verdict: Verdict) -> None:
        agrees = verdict.teacher_top1 == verdict.labels
        every = torch.ones_like(agrees)
        gated = ~verdict.similarity.isnan()
        for name, mask in (
            ("augmented", every),
            ("passed_clip", verdict.passes_clip & gated),
            ("accepted", verdict.kept),
        ):
            self._count(name, mask)
            self._count(f"{name}_agreeing", mask & agrees)

    def _count(self, name: str, mask: Tensor) -> None:
        setattr(self, name, getattr(self, name) + int(mask.sum()))

    @property
    def acceptance_rate(self) -> float | None:
        return _share(self.accepted, self.augmented)

    @property
    def label_agreement(self) -> LabelAgreement:
        return {
            "sources": _share(self.synthesized_agreeing, self.synthesized),
            "before": _share(self.augmented_agreeing, self.augmented),
            "after_clip": _share(self.passed_clip_agreeing, self.passed_clip),
            "after": _share(self.accepted_agreeing, self.accepted),
        }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
