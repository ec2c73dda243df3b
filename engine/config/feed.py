"""How the student is fed."""

from dataclasses import dataclass, field
from typing import Literal

from engine.config.decides import decides
from engine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FeedConfig:
    """From the bank to the student. Both kinds give the same samples in the same order."""

    kind: Literal["auto", "dali", "torch"] = "auto"
    """dali: NVIDIA DALI; torch: a DataLoader; auto: dali where it is installed."""
    dtype: Literal["fp32", "bf16", "fp16"] = field(default="fp32", metadata=decides("student"))
    """Type of the images that the feed gives."""
    threads: int = 2
    """Threads of DALI, or worker processes of the DataLoader, that decode."""
    newest: float = field(default=0.0, metadata=decides("student"))
    """Share of each batch that is drawn from the shards of the newest round; the rest is drawn from all."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UserError(f"feed.threads is {self.threads}; set it to 1 or more")
        if not 0 <= self.newest < 1:
            raise UserError(f"feed.newest is {self.newest}; set it to a share from 0 to below 1")
