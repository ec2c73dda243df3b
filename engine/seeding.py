"""Counter-based seeds: every random draw is a pure function of (seed, purpose, index)."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(seed: int, *parts: int | str) -> int:
    """Return a 63-bit seed for the purpose named by `parts`, e.g. `derive_seed(seed, "augment", key, k)`."""
    text = "\x1f".join(str(part) for part in (seed, *parts))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded for the purpose named by `parts`."""
    return torch.Generator().manual_seed(derive_seed(seed, *parts))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def randn_per_image(seeds: Iterable[int], shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise, float32 [B, *shape] on the CPU; row i depends on its own seed only."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)
