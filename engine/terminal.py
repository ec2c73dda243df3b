"""Output of the commands, and the signals that end them: safe standard streams, the console, and the log.

A failed write never ends the work. Text is printed verbatim: brackets and :colons: are no markup.
"""

import io
import logging
import os
import signal
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
PACKAGES = ("engine", "export", "kernels", "bench")
"""Packages whose loggers have their names."""
LEVELS = {"--quiet": logging.WARNING, "--verbose": logging.DEBUG}

_console: "Console | None" = None


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does. Exit code 143."""


class Output(io.TextIOWrapper):
    """A text stream that redirects its file descriptor to /dev/null after the first failed write."""

    failure: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        self.failure = self.failure or error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def protect_streams() -> None:
    """Replace stdout and stderr by streams on which printing never raises.

    Handles a stream that is closed from the start or later (`| head`), a full disk, and an encoding that
    lacks a character. Streams that another program has already replaced stay as they are.
    """
    _open_missing_descriptors()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Output(open(os.devnull, "wb"), "utf-8"))  # noqa: PTH123, SIM115
        elif stream is getattr(sys, f"__{name}__") and type(stream) is io.TextIOWrapper:
            setattr(sys, name, _output(stream))


def lost_output() -> OSError | None:
    """Return the error that lost some of stdout; None without one, or if the reader closed the pipe."""
    if not isinstance(sys.stdout, Output):
        return None
    sys.stdout.flush()
    return None if isinstance(sys.stdout.failure, BrokenPipeError) else sys.stdout.failure


def console() -> "Console":
    """Return the console of stdout, the same for all callers, so that lines appear above a live display."""
    from rich.console import Console

    global _console
    stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # a live display replaces stdout by a proxy
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


def _open_missing_descriptors() -> None:
    """Open the closed ones of descriptors 0 to 2, so that no other file gets what C code prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def add_log_flags(parser: ArgumentParser) -> None:
    """Add --quiet and --verbose to --help; `on_console` removes them before the command line is parsed."""
    parser.add_argument("--quiet", action="store_true", help="show only the result, warnings and errors")
    parser.add_argument(
        "--verbose", action="store_true", help="also show debug lines, with the time and the logger"
    )


@contextmanager
def on_console(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Show the packages' log inside the block, and yield the arguments without `--quiet` and `--verbose`.

    If several of these flags are given, the last one applies.
    """
    level = [logging.INFO, *(LEVELS[each] for each in arguments if each in LEVELS)][-1]
    with _attached(_ConsoleHandler(is_verbose=level == logging.DEBUG), level):
        yield [each for each in arguments if each not in LEVELS]


@contextmanager
def _attached(handler: logging.Handler, level: int) -> Iterator[None]:
    """Send the packages' records to `handler` only: other libraries add handlers to the root logger."""
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
    """Prints the text of a record above progress bars, with `warning: ` before a warning."""

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


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGINT and Terminated for SIGTERM inside the block.

    A second signal ends the process at once. A signal that is ignored or has a handler of its own is left
    alone, and so are all outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: handler for number, handler in usual.items() if signal.getsignal(number) == handler}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt(number: int, _: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or Terminated for SIGTERM, and let the next signal end the process."""
    for each in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
