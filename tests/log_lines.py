"""What the engine logs inside a block, for tests and helpers without pytest's fixture."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_lines(name: str = "engine") -> Iterator[list[str]]:
    """Yield the messages of a logger and its children inside the block, from INFO on."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, collector = logging.getLogger(name), Collector()
    before = logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.setLevel(before)
        logger.removeHandler(collector)
