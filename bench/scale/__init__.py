"""Measure how generation and distillation scale with workers, Ray, shards and processes."""

from collections.abc import Iterator

from bench.rows import Row


def rows() -> Iterator[Row]:
    """Yield the rows of each comparison.

    Several workers against one, Ray against the pool, 200 shards against 20, a plan against its run, a forked
    replacement worker against a new interpreter, and a student in two processes against one.
    """
    from bench.scale import distillation, respawn, throughput

    yield from throughput.over_workers()
    yield from throughput.over_shards()
    yield from respawn.rows()
    yield from distillation.rows()
