"""The plan of a generation as a user reads it."""

from rich.console import Group, RenderableType
from rich.table import Table

from engine.config.recipe import Recipe
from engine.coverage import MORE_SHARDS, planned_coverage
from engine.progress import clock
from engine.workers.plan import Sample


def plan_table(sample: Sample, recipe: Recipe, shards: int, workers: int | None) -> RenderableType:
    """A row for each number of workers; above it the shards' size and classes, below it what all rests on."""
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
    return Group(size, coverage, table, _basis(sample, recipe), *warnings)


def _counts(shards: int, workers: int | None) -> list[int]:
    """Powers of two up to what the shards can use, at most 64, and the number asked for."""
    powers = {2**power for power in range(7) if 2**power <= shards}
    return sorted(powers | ({workers} if workers else set()))


def _size(sample: Sample, shards: int) -> str:
    accepted = "" if sample.acceptance is None else f", {sample.acceptance:.0%} of the variations accepted"
    size = shards * sample.shard_bytes
    return f"{shards} shards: {shards * sample.images:,.0f} images, {size / 1e9:.2f} GB{accepted}"


def _basis(sample: Sample, recipe: Recipe) -> str:
    low, high = min(sample.later_seconds), max(sample.later_seconds)
    compute = recipe.compute
    return (
        f"measured here ({compute.device}, {compute.runtime} {compute.runtime_precision}, {compute.threads} "
        f"threads): networks loaded in {sample.load_seconds:.1f} s, the first shard "
        f"{sample.first_seconds:.1f} s, then {sample.shard_seconds:.1f} s a shard "
        f"({len(sample.later_seconds)} shards, {low:.1f} - {high:.1f}); {sample.rss / 2**30:.1f} GiB a "
        "worker. More workers: each with a device like this one to itself."
    )
