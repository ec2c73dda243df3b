"""The lines that the engine and the exporter log in a test."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

OURS = ("engine", "export")


def record_info(caplog: pytest.LogCaptureFixture) -> None:
    """Record our loggers from INFO on; all others stay at WARNING."""
    for name in OURS:
        caplog.set_level(logging.INFO, logger=name)


def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of our loggers so far."""
    return [record.getMessage() for record in caplog.records if record.name.split(".")[0] in OURS]


@contextmanager
def logged(logger: logging.Logger) -> Iterator[list[str]]:
    """Collect the messages that `logger` handles inside, in a test without a fixture of its own."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Collect()
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
