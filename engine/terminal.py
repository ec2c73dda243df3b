"""What the commands print to: it never ends the work, and prints text as it is."""

import io
import logging
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


_console: "Console | None" = None


class Output(io.TextIOWrapper):
    """Text to a file descriptor; if a write fails, it and all later ones go to /dev/null instead."""

    failure: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failure = self.failure or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def settle() -> None:
    """Make stdout and stderr such that printing raises nothing, whatever is at their other end.

    It may be closed, from the start or in the middle (`| head`), full, or of an encoding without the
    character. Streams that another program has put in their place are left alone.
    """
    _open_missing()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Output(open(os.devnull, "wb"), "utf-8"))  # noqa: PTH123, SIM115
        elif stream is getattr(sys, f"__{name}__") and type(stream) is io.TextIOWrapper:
            setattr(sys, name, _output(stream))


def lost_output() -> OSError | None:
    """Why some of stdout was not written, None if all was, or if its reader went away."""
    if not isinstance(sys.stdout, Output):
        return None
    sys.stdout.flush()
    return None if isinstance(sys.stdout.failure, BrokenPipeError) else sys.stdout.failure


def console() -> "Console":
    """Return the console of stdout: one for all, so that lines are printed above a live display.

    Text may have anything in it: brackets and :colons: are no markup.
    """
    from rich.console import Console

    global _console
    stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # a live display puts a proxy there
    if _console is None or _console.file is not stream:
        _console = Console(file=stream, markup=False, emoji=False, highlight=False)
    return _console


def _output(stream: io.TextIOWrapper) -> Output:
    stream.flush()
    return Output(
        stream.buffer,
        stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _open_missing() -> None:
    """Else the next file that is opened takes a standard number, and gets what C code prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


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
