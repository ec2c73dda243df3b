"""The images that an export is checked on: the run's own, if its bank is still there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.bank.reader import BankReader
from engine.errors import UserError

COUNT = 128
SHARDS = 4
"""Read at most."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """RGB images and where they are from."""

    images: NDArray[np.uint8]
    """[N, 3, H, W]"""
    source: str
    """In words, e.g. the bank's path."""


def sample_of(banks: Sequence[str], image_size: int) -> Sample:
    """Images of the first bank that has some; without one random images, and `source` says why."""
    reasons = []
    for url in banks:
        try:
            images = _from_bank(url)
        except (UserError, OSError) as error:
            reasons.append(" ".join(str(error).split()))
            continue
        if len(images) and images.shape[2:] == (image_size, image_size):
            return Sample(images=images, source=f"of {url}")
        reasons.append(f"{url} has no images of {image_size}x{image_size}")
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (COUNT, 3, image_size, image_size), np.uint8)
    why = "; ".join(reasons) or "there is no run with a bank"
    return Sample(images=images, source=f"of random pixels ({why})")


def _from_bank(url: str) -> NDArray[np.uint8]:
    """[N, 3, H, W], N up to COUNT, spread over shards and over the images of each."""
    bank = BankReader.open(url)
    numbers = bank.numbers[:: max(1, len(bank.numbers) // SHARDS)][:SHARDS]
    found = []
    for number in numbers:
        kept = len(bank.spans(number))
        places = np.linspace(0, kept - 1, min(kept, COUNT // len(numbers)), dtype=np.int64)
        found.append(bank.images(number, places))
    images = np.concatenate(found) if found else np.empty((0, 1, 1, 3), np.uint8)
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)).transpose(0, 3, 1, 2))
