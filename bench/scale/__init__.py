"""How generation and distillation scale: over workers, over Ray, over shards, over devices."""

from collections.abc import Iterator

from bench.rows import Row


def rows() -> Iterator[Row]:
    """Workers beside one, Ray beside the pool, 200 shards beside 20, the plan, two processes of a student."""
    from bench.scale import distillation, shards, workers

    yield from workers.rows()
    yield from shards.rows()
    yield from distillation.rows()
