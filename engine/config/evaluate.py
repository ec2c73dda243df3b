"""Settings of the test set. The loop itself reads no dataset."""

from dataclasses import dataclass, field
from typing import Literal

from engine.config.decides import decides


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The test set, which is read once, after the last training step."""

    dataset: Literal["fashion-mnist", "none"] = "none"
    """Test set to measure on; none leaves the accuracies null."""
    root: str | None = field(default=None, metadata=decides("execution"))
    """Folder of the dataset's files; null looks in the usual places."""
