"""Augment and filter at production size: Stable Diffusion 1.5 and CLIP ViT-B/32 with random weights.

Made for rented GPUs: every candidate is opened and measured within a time limit, and a candidate that fails
or takes too long is reported and skipped.
"""

from collections.abc import Iterator, Sequence

from bench.production import similarity, variations
from bench.production.measure import rows_of
from bench.production.ways import OURS
from bench.rows import Row
from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.config.tensorrt import TensorRtConfig
from engine.distributed import open_accelerator
from engine.runtime.base import runtime_options

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
    compute = resolve_compute(config)
    device = open_accelerator(compute).device
    options = runtime_options(compute, TensorRtConfig(compute_capabilities=("current",)), device)
    for stage in stages:
        yield from rows_of(JOBS[stage](wanted, options), device, seconds=seconds)
