"""Settings of the test set. The loop itself reads no dataset."""

from dataclasses import dataclass, field

from engine.config.decides import decides
from engine.errors import UserError

FASHION_MNIST = "fashion-mnist"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The test set, which is read once, after the last training step."""

    data: str | None = None
    """Test set to measure on: a path of labelled images (class folders, WebDataset tars, parquet files, or a
    folder of datasets.save_to_disk), torchvision:NAME, or fashion-mnist; null leaves the accuracies null."""
    root: str | None = field(default=None, metadata=decides("execution"))
    """Folder of the files of torchvision:NAME or fashion-mnist; null looks in the usual places."""

    def __post_init__(self) -> None:
        if self.data is not None and self.data.strip().lower() in ("", "none"):
            raise UserError(f"evaluate.data is '{self.data}'; write null to measure on no test set")
