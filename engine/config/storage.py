"""Settings of a bank's image files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.config.checked import Checked

Codec = Literal["raw", "png", "webp", "jpeg"]


@dataclass(frozen=True, kw_only=True)
class StorageConfig(Checked):
    """How a bank stores its images."""

    codec: Codec = "raw"
    """raw (uncompressed numpy files, fastest for small images), png (lossless), webp or jpeg (lossy)."""
    quality: int = 95
    """Quality of webp and jpeg, from 1 to 100; webp at 100 is lossless."""

    def faults(self) -> Iterator[str]:
        if not 1 <= self.quality <= 100:
            yield f"storage.quality is {self.quality}; set it to 1 to 100"


def stored_channels(codec: Codec, *, is_grey: bool) -> int:
    """Return the channels of the stored images of a grey or a colour teacher; webp has no grayscale."""
    return 1 if is_grey and codec != "webp" else 3
