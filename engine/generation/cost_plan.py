"""`--plan`: estimate the time and disk usage of a generation from a short sample made on this device."""

import logging
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Group, RenderableType
from rich.table import Table

from engine.bank.agreement import Agreements
from engine.config.recipe import Recipe
from engine.errors import FailedShardsError
from engine.generation.messages import Done, Failed, Job
from engine.generation.provenance import bank_header
from engine.generation.workers.worker import Worker
from engine.progress import clock, counted
from engine.stages.labels import MORE_SHARDS, planned_coverage

logger = logging.getLogger(__name__)
LATER_SHARDS = 3
"""Number of shards measured after the first, which includes the generator's warm-up; times `Job.depth`."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Measurements of one worker on this device."""

    load_seconds: float
    """Time to load the networks."""
    first_seconds: float
    """Time of the first shard, including warm-up."""
    later_seconds: tuple[float, ...]
    """Time of each further shard."""
    shard_bytes: float
    """Mean size of a shard's files."""
    images: float
    """Mean number of kept images per shard."""
    acceptance: float | None
    """Share of the variations that the filter kept; None without variations."""
    rss: int
    """Resident memory of the worker's process at the end, in bytes."""
    agreements: Agreements = Agreements()
    """How often the teacher agrees with the labels."""

    @property
    def shard_seconds(self) -> float:
        """Median time of a shard after the first."""
        return median(self.later_seconds)

    def wall_seconds(self, shards: int, workers: int) -> float:
        """Return the estimated time, if each worker has a device like this one to itself."""
        rounds = math.ceil(shards / workers)
        return self.load_seconds + self.first_seconds + (rounds - 1) * self.shard_seconds


def take_sample(recipe: Recipe) -> Sample:
    """Make a few shards of a resolved recipe in a temporary folder. Raises what a generation raises."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        job = Job(recipe=recipe, url=folder, header=bank_header(recipe))
        count = 1 + LATER_SHARDS * job.depth
        worker = Worker(job)
        times = [start, time.perf_counter()]
        shards = []
        for report in worker.run(iter(range(count))):
            times.append(time.perf_counter())
            shards.append(_require_done(report))
            logger.info("sample %d/%d: %.1f s", len(shards), count, times[-1] - times[-2])
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    variations = sum(done.variations for done in shards)
    load, first, *later = (after - before for before, after in zip(times, times[1:], strict=False))
    return Sample(
        load_seconds=load,
        first_seconds=first,
        later_seconds=tuple(later),
        shard_bytes=size / len(shards),
        images=sum(done.entry.images for done in shards) / len(shards),
        acceptance=sum(done.accepted for done in shards) / variations if variations else None,
        rss=shards[-1].rss,
        agreements=sum((done.agreements for done in shards), Agreements()),
    )


def _require_done(report: Done | Failed) -> Done:
    if isinstance(report, Failed):
        raise FailedShardsError(f"the sample failed: {report.reason}")
    return report


def plan_table(sample: Sample, recipe: Recipe, shards: int, workers: int | None) -> RenderableType:
    """Return the plan: size and classes of the bank, a row per number of workers, and the measurements."""
    unit = "GPU-hours" if recipe.compute.device == "cuda" else "core-hours"
    table = Table("workers", "time", unit, "kept images/s")
    for count in _counts(shards, workers):
        seconds = sample.wall_seconds(shards, count)
        devices = count * (1 if recipe.compute.device == "cuda" else recipe.compute.threads or 1)
        pace = shards * sample.images / seconds
        table.add_row(str(count), clock(seconds), f"{devices * seconds / 3600:.2f}", f"{pace:.1f}")
    warning = sample.agreements.warning
    warnings = [f"warning: {warning}"] if warning else []
    size, coverage = _size(sample, shards), planned_coverage(recipe, shards, MORE_SHARDS)
    return Group(size, coverage, table, _measurements(sample, recipe), *warnings)


def _counts(shards: int, workers: int | None) -> list[int]:
    """Return the powers of two up to 64 and to the number of shards, and `workers`."""
    powers = {2**power for power in range(7) if 2**power <= shards}
    return sorted(powers | ({workers} if workers else set()))


def _size(sample: Sample, shards: int) -> str:
    accepted = "" if sample.acceptance is None else f", {sample.acceptance:.0%} of the variations accepted"
    size = shards * sample.shard_bytes
    images = f"{shards * sample.images:,.0f} images, {size / 1e9:.2f} GB"
    return f"{counted(shards, 'shard', 'shards')}: {images}{accepted}"


def _measurements(sample: Sample, recipe: Recipe) -> str:
    low, high = min(sample.later_seconds), max(sample.later_seconds)
    compute = recipe.compute
    return (
        f"measured here ({compute.device}, {compute.runtime} {compute.runtime_precision}, "
        f"{counted(compute.threads or 1, 'thread', 'threads')}): networks loaded in "
        f"{sample.load_seconds:.1f} s, first shard {sample.first_seconds:.1f} s, "
        f"then {sample.shard_seconds:.1f} s per shard "
        f"({counted(len(sample.later_seconds), 'shard', 'shards')}, {low:.1f} - {high:.1f} s); "
        f"{sample.rss / 2**30:.1f} GiB per worker. "
        "The table assumes that each worker has a device like this one to itself."
    )
