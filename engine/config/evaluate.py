"""What a run is measured on. The loop itself reads no dataset."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The test set. It is read once, after the last step of training."""

    dataset: Literal["fashion-mnist", "none"] = "none"
    """Name of the test set; none leaves the accuracies null."""
    root: str | None = None
    """Folder of the dataset's files; null tries the usual places."""
