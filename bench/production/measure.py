"""Open, compare and time the candidates of each job, within time limits."""

import gc
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from bench.calls import as_published
from bench.machine import describe, gemm_ceiling
from bench.production.job import Candidate, Job, Make
from bench.rows import Row, commit
from bench.timing import in_turns, time_limit
from export.spec import DTYPES


def rows_of(jobs: Iterable[Job], device: torch.device, *, seconds: float) -> Iterator[Row]:
    """Yield rows; `seconds` limits each candidate's opening with its first call, and each comparison."""
    for job in jobs:
        theirs = _opened(job, _as_published(job.theirs), None, seconds)
        if theirs:
            wanted = next(iter(theirs.values()))(job.steps[0])
            ours = _opened(job, job.ours, wanted, seconds)
            for steps in job.steps:
                yield from _timed(job, steps, ours, theirs, device, seconds)
            del ours
        del theirs
        _free(device)


def _as_published(candidates: Mapping[str, Candidate]) -> dict[str, Candidate]:
    def opening(candidate: Candidate) -> Make:
        return as_published(as_published(candidate.open)())

    return {
        name: replace(candidate, open=partial(opening, candidate)) for name, candidate in candidates.items()
    }


def _opened(
    job: Job, candidates: Mapping[str, Candidate], wanted: Tensor | None, seconds: float
) -> dict[str, Make]:
    """Open the candidates; return those whose first result matches `wanted` within the time limit."""
    opened = {}
    for name, candidate in candidates.items():
        try:
            with time_limit(seconds):
                make = candidate.open()
                result = make(job.steps[0])
            if wanted is not None:
                job.require_same(f"{job.case}, {name}", result, wanted)
            opened[name] = make
        except Exception as error:  # of any kind: the other candidates still run
            _say_left_out(job, name, error)
    return opened


def _timed(
    job: Job,
    steps: int,
    ours: Mapping[str, Make],
    theirs: Mapping[str, Make],
    device: torch.device,
    seconds: float,
) -> Iterator[Row]:
    ceilings = {
        dtype: gemm_ceiling(device, DTYPES[dtype])
        for dtype in sorted({job.ours[name].dtype for name in ours})
    }
    calls = {name: partial(make, steps) for name, make in (*theirs.items(), *ours.items())}
    try:
        with time_limit(seconds):
            flops = job.flops(steps)
            ms = in_turns(calls | {dtype: ceiling.call for dtype, ceiling in ceilings.items()}, device)
    except Exception as error:
        _say_left_out(job, f"{steps} steps", error)
        return
    for name, baseline in product(ours, theirs):
        candidate = job.ours[name]
        floor_ms = ceilings[candidate.dtype].ms(flops, ms[candidate.dtype])
        yield Row(
            case=f"{job.case}, {name}",
            baseline=baseline,
            ours=1000 * job.batch / ms[name],
            theirs=1000 * job.batch / ms[baseline],
            unit="img/s",
            ratio=ms[baseline] / ms[name],
            floor=1000 / floor_ms,
            device=describe(device),
            dtype=candidate.dtype,
            shape=job.shape.format(steps=steps),
            commit=commit(),
        )


def _say_left_out(job: Job, what: str, error: Exception) -> None:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    print(f"{job.case}, batch {job.batch}, {what}: left out: {reason}", file=sys.stderr, flush=True)


def _free(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
