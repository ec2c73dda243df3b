"""What a run is measured on. The loop itself reads no dataset."""

from dataclasses import dataclass, field
from typing import Literal

from engine.config.decides import decides


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The test set. It is read once, after the last step of training."""

    dataset: Literal["fashion-mnist", "none"] = "none"
    """Name of the test set; none leaves the accuracies null."""
    root: str | None = field(default=None, metadata=decides("execution"))
    """Folder of the dataset's files; null tries the usual places."""
