"""Compare the feed with the loaders of research code, and measure how long training waits for it."""

from collections.abc import Iterator

from bench.rows import Row


def rows(images: int) -> Iterator[Row]:
    """Yield rows of speed, waiting time, and memory up to a bank of `images` images."""
    from bench.feed import memory, speed, waiting

    yield from speed.rows()
    yield from waiting.rows()
    yield from memory.rows(images)
