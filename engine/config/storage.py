"""How a bank keeps its images."""

from dataclasses import dataclass
from typing import Literal

from engine.errors import UserError

Codec = Literal["raw", "png", "webp", "jpeg"]


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """The files of a bank's images."""

    codec: Codec = "raw"
    """raw: numpy files, not compressed, quickest for small images; png: lossless; webp and jpeg: lossy."""
    quality: int = 95
    """Quality of webp and jpeg, 1 to 100; webp at 100 is lossless."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise UserError(f"storage.quality is {self.quality}; set it to 1 to 100")


def stored_channels(codec: Codec, in_channels: int) -> int:
    """Channels of the stored images if the teacher takes `in_channels`; webp has no grey."""
    return 3 if codec == "webp" else in_channels
