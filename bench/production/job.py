"""Candidates that do the same work at one batch size."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Make = Callable[[int], Tensor]
"""Solver steps -> the result [B, ...], equal for all candidates."""
Open = Callable[[], Make]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to do the work. `open` loads, builds or wraps; lazy compilation happens at the first call."""

    open: Open
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """Ours and the baselines at one batch size. Our results are compared with the first of `theirs`."""

    case: str
    shape: str
    batch: int
    steps: tuple[int, ...]
    ours: Mapping[str, Candidate]
    theirs: Mapping[str, Candidate]
    flops: Callable[[int], float]
    """Solver steps -> floating-point operations per image."""
    require_same: Callable[[str, Tensor, Tensor], None]
    """(name, our result, their result); raises DifferentWorkError."""
