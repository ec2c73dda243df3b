"""Settings of the feed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from engine.config.checked import Checked
from engine.config.decides import decides


@dataclass(frozen=True, kw_only=True)
class FeedConfig(Checked):
    """How a bank's images reach the student. Both kinds yield the same samples in the same order."""

    kind: Literal["auto", "dali", "torch"] = "auto"
    """dali (NVIDIA DALI), torch (a DataLoader), or auto: dali if it is installed."""
    dtype: Literal["fp32", "bf16", "fp16"] = field(default="fp32", metadata=decides("student"))
    """Data type of the images in a batch."""
    threads: int = 2
    """Decoding threads of DALI, or worker processes of the DataLoader."""
    newest: float = field(default=0.0, metadata=decides("student"))
    """In engine.run: share of each batch that is drawn from the newest round; the rest is drawn from all
    rounds."""

    @property
    def is_resolved(self) -> bool:
        """Whether `kind` is not auto."""
        return self.kind != "auto"

    def faults(self) -> Iterator[str]:
        if self.threads < 1:
            yield f"feed.threads is {self.threads}; set it to 1 or more"
        if not 0 <= self.newest < 1:
            yield f"feed.newest is {self.newest}; set it to a share in [0, 1)"
