"""How generation and distillation scale: over workers, over Ray, over shards, over devices."""

from collections.abc import Iterator

from bench.rows import Row


def rows() -> Iterator[Row]:
    """Yield several workers against one, Ray against the pool, 200 shards against 20, a plan against its run,
    a forked replacement against a new interpreter, and two processes of a student against one."""
    from bench.scale import distillation, respawn, shards, workers

    yield from workers.rows()
    yield from shards.rows()
    yield from respawn.rows()
    yield from distillation.rows()
