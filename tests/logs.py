"""What the engine and the exporter log in a test, from pytest's fixture."""

import logging

import pytest

OURS = ("engine", "export")


def record_info(caplog: pytest.LogCaptureFixture) -> None:
    """Record our loggers from INFO on; all others stay at WARNING."""
    for name in OURS:
        caplog.set_level(logging.INFO, logger=name)


def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of our loggers so far."""
    return [record.getMessage() for record in caplog.records if record.name.split(".")[0] in OURS]
