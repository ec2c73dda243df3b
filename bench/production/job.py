"""Candidates that do the same work, at one batch size."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Make = Callable[[int], Tensor]
"""Solver steps -> the result [B, ...]; the same for every candidate."""
Open = Callable[[], Make]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """`open` loads, builds or wraps; what is compiled at the first call is compiled then."""

    open: Open
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """The first of `theirs` is also what the results of ours are compared with."""

    case: str
    shape: str
    batch: int
    steps: tuple[int, ...]
    ours: Mapping[str, Candidate]
    theirs: Mapping[str, Candidate]
    flops: Callable[[int], float]
    """Solver steps -> floating-point operations of one image."""
    require_same: Callable[[str, Tensor, Tensor], None]
    """(name, our result, their result); raises DifferentWorkError."""
