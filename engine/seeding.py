"""Counter-based seeds: every random draw is a pure function of (seed, what it is for, its index)."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(seed: int, *parts: int | str) -> int:
    """A 63-bit seed for the draw named by `parts`, e.g. `derive_seed(seed, "augment", key, k)`."""
    text = "\x1f".join(str(part) for part in (seed, *parts))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *parts: int | str) -> torch.Generator:
    """A CPU generator seeded for the draw named by `parts`."""
    return torch.Generator().manual_seed(derive_seed(seed, *parts))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators under `seed` inside, as they were after: for code that draws from them."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def randn_per_image(seeds: Iterable[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, float32 [B, *shape] on the CPU; row i depends on its own seed only."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)
