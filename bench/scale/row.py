"""Build a row of this bench: on the CPU, without a floor."""

import torch

from bench.machine import describe
from bench.rows import Row, commit


def row(
    case: str,
    baseline: str,
    ours: float,
    theirs: float,
    unit: str,
    *,
    ratio: float | None = None,
    dtype: str,
    shape: str,
) -> Row:
    """Return a row. By default `ratio` is theirs / ours, for figures where less is better."""
    return Row(
        case=f"scale/{case}",
        baseline=baseline,
        ours=ours,
        theirs=theirs,
        unit=unit,
        ratio=theirs / max(abs(ours), 1e-12) if ratio is None else ratio,
        floor=None,
        device=describe(torch.device("cpu")).rpartition(",")[0],  # the shape names the threads
        dtype=dtype,
        shape=shape,
        commit=commit(),
    )
