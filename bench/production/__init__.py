"""Augment and filter at production size: Stable Diffusion 1.5 and CLIP ViT-B/32 with random weights.

Made for rented GPUs: every candidate is opened and measured within a time limit, and a candidate that fails
or takes too long is reported and skipped.
"""

from collections.abc import Iterator, Sequence

from bench.production import similarity, variations
from bench.production.measure import rows_of
from bench.production.ways import OURS
from bench.rows import Row
from bench.stages.measure import say
from engine.compute import ComputeConfig, open_accelerator, resolved
from engine.runtime.place import open_place
from engine.runtime.tensorrt_config import TensorRtConfig

__all__ = ["JOBS", "PRIORS", "WAYS", "Wanted", "rows"]

JOBS = {"augment": variations.jobs, "filter": similarity.jobs}
PRIORS = tuple(variations.PRIORS)
WAYS = tuple(OURS)
Wanted = variations.Wanted


def rows(stages: Sequence[str], wanted: Wanted, config: ComputeConfig, *, seconds: float) -> Iterator[Row]:
    """Yield the rows of `stages`, names in JOBS.

    `seconds` limits the opening of each candidate, and each comparison. Ours runs under the engine's process
    settings, the baselines under torch's default cuDNN flags.
    """
    compute = resolved(config)
    device = open_accelerator(compute).device
    place = open_place(compute, TensorRtConfig(compute_capabilities=("current",)), device, say)
    for stage in stages:
        yield from rows_of(JOBS[stage](wanted, place), device, seconds=seconds)
