"""The feed beside the loaders that research codes use, and what it costs the student's training."""

from collections.abc import Iterator

from bench.rows import Row


def rows(images: int) -> Iterator[Row]:
    """Speed, waiting, and memory up to a bank of so many images."""
    from bench.feed import memory, speed, waiting

    yield from speed.rows()
    yield from waiting.rows()
    yield from memory.rows(images)
