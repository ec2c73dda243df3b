"""`summary.json`: the results of a run in one flat file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from engine.atomic import replacing

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
