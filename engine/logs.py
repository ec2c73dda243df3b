"""Show the log of a command on its console.

The packages only log: a library user sees nothing without configuring `logging`. A command shows news and
warnings as lines of their text; `--quiet` and `--verbose` show less and more.
"""

import logging
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from engine.terminal import console

PACKAGES = ("engine", "export", "kernels", "bench")
"""Their loggers are named after them."""
LEVELS = {"--quiet": logging.WARNING, "--verbose": logging.DEBUG}


def add_log_flags(parser: ArgumentParser) -> None:
    """Add the flags to --help; `on_console` removes them before the parser reads the command line."""
    parser.add_argument(
        "--quiet", action="store_true", help="show the result, warnings and errors, but no news or progress"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="also show debug lines, with the time and the logger's name"
    )


@contextmanager
def on_console(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Show the packages' log while the context lasts; yield the arguments without `--quiet` and `--verbose`.

    The last of these flags counts.
    """
    level = [logging.INFO, *(LEVELS[each] for each in arguments if each in LEVELS)][-1]
    with _attached(_ConsoleHandler(is_verbose=level == logging.DEBUG), level):
        yield [each for each in arguments if each not in LEVELS]


@contextmanager
def _attached(handler: logging.Handler, level: int) -> Iterator[None]:
    """Let `handler` alone get the packages' records, as other libraries add their own to the root logger."""
    loggers = [logging.getLogger(name) for name in PACKAGES]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (old_level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = propagate


class _ConsoleHandler(logging.Handler):
    """Prints a record as its text, above progress bars; a warning starts with `warning: `."""

    def __init__(self, *, is_verbose: bool) -> None:
        super().__init__()
        self._is_verbose = is_verbose

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if record.levelno == logging.WARNING:
            line = f"warning: {line}"
        if self._is_verbose:
            line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.name}: {line}"
        return line

    def emit(self, record: logging.LogRecord) -> None:
        try:
            console().print(self.format(record), soft_wrap=True)
        except Exception:
            self.handleError(record)
