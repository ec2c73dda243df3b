"""How generation and distillation scale: over workers, over Ray, over shards, over devices."""

from collections.abc import Iterator

from bench.rows import Row


def rows() -> Iterator[Row]:
    """Workers beside one, Ray beside the pool, 200 shards beside 20, the plan, a forked replacement beside a
    new interpreter, two processes of a student."""
    from bench.scale import distillation, respawn, shards, workers

    yield from workers.rows()
    yield from shards.rows()
    yield from respawn.rows()
    yield from distillation.rows()
