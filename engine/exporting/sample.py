"""The images that an exported classifier is checked on: the run's own, if its bank still exists."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.bank.reader import BankReader
from engine.errors import UserError

COUNT = 128
SHARDS = 4
"""Maximum number of shards to read."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """RGB images and their origin."""

    images: NDArray[np.uint8]
    """[N, 3, H, W]"""
    source: str
    """Ends a phrase such as "128 images ...": "of runs/a/bank"."""


def read_sample(banks: Sequence[str], image_size: tuple[int, int]) -> Sample:
    """Return images of the first bank that has some, else random pixels; `source` then says why."""
    reasons = []
    for url in banks:
        try:
            images = _from_bank(url)
        except (UserError, OSError) as error:
            reasons.append(" ".join(str(error).split()))
            continue
        if len(images) and images.shape[2:] == image_size:
            return Sample(images=images, source=f"of {url}")
        reasons.append(f"{url} has no images of {'x'.join(map(str, image_size))}")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (COUNT, 3, *image_size), np.uint8)
    why = "; ".join(reasons) or "there is no run with a bank"
    return Sample(images=images, source=f"of random pixels ({why})")


def _from_bank(url: str) -> NDArray[np.uint8]:
    """Return up to COUNT images [N, 3, H, W], spread over the shards and over the images of each."""
    bank = BankReader.open(url)
    numbers = bank.numbers[:: max(1, len(bank.numbers) // SHARDS)][:SHARDS]
    read = []
    for number in numbers:
        kept = len(bank.spans(number))
        indices = np.linspace(0, kept - 1, min(kept, COUNT // len(numbers)), dtype=np.int64)
        read.append(bank.images(number, indices))
    images = np.concatenate(read) if read else np.empty((0, 1, 1, 3), np.uint8)
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)).transpose(0, 3, 1, 2))
