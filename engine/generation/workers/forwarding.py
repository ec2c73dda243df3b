"""Forward the log of a worker's process to the coordinator."""

import logging
from collections.abc import Callable

from engine.generation.messages import Logged
from engine.terminal import PACKAGES


def forward_log(report: Callable[[Logged], None], level: int) -> None:
    """Pass each record of this process at `level` and above to `report`, and to nothing else."""
    handler = _Forwarder(report)
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


class _Forwarder(logging.Handler):
    def __init__(self, report: Callable[[Logged], None]) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report(Logged(logger=record.name, level=record.levelno, text=self.format(record)))
