"""Settings of the test set. The loop itself reads no dataset."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.config.checked import Checked
from engine.config.decides import decides

FASHION_MNIST = "fashion-mnist"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Checked):
    """The test set, which is read once, after the last training step."""

    data: str | None = None
    """Test set to measure on: a path of labelled images (class folders, WebDataset tars, parquet files, or a
    folder of datasets.save_to_disk), torchvision:NAME, or fashion-mnist; null leaves the accuracies null."""
    root: str | None = field(default=None, metadata=decides("execution"))
    """Folder of the files of torchvision:NAME or fashion-mnist; null looks in the usual places."""

    def faults(self) -> Iterator[str]:
        if self.data is not None and self.data.strip().lower() in ("", "none"):
            yield f"evaluate.data is '{self.data}'; write null to measure on no test set"
