"""How a command ends: what the user can mend is one line and an exit code, a defect is a traceback."""

import errno
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence

from engine import logs, terminal
from engine.errors import FailedShardsError, NonFiniteError, OutOfMemoryError, UserError
from export.errors import ExportError

_AGAIN = "then repeat the command, with --resume if it has that option"
REMEDIES = {
    errno.ENOSPC: f"; free some space on that disk, {_AGAIN}",
    errno.EDQUOT: f"; free some space or raise the quota, {_AGAIN}",
    errno.EFBIG: f"; raise the limit on the size of files (ulimit -f), {_AGAIN}",
}


def main(command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Runs `command` on `arguments` (default: the command line's), says why it fails, returns the exit code.

    0 success, 1 numbers that are not finite, memory that runs out, shards or files that fail, 2 a mistake
    of the user, 130 interrupted.
    """
    terminal.settle()
    code, message = outcome(command, sys.argv[1:] if arguments is None else arguments)
    if not code and (lost := terminal.lost_output()):
        code, message = 1, _line(f"error: standard output: {lost.strerror}; the work itself is done")
    if message:
        print(message, file=sys.stderr)
    return code


def outcome(command: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code of `command`, and one line that says why it failed, empty where it did not."""
    try:
        with logs.on_console(arguments) as rest:
            command(rest)
    except (UserError, ExportError) as error:
        return 2, _line(f"error: {error}")
    except (NonFiniteError, OutOfMemoryError, FailedShardsError) as error:
        return 1, _line(f"error: {error}")
    except ArgumentError as error:
        return 2, _line(f"error: {error}; --help lists the options")
    except OSError as error:
        return 1, _line(f"error: {error}{REMEDIES.get(error.errno or 0, '')}")
    except KeyboardInterrupt:
        return 130, "interrupted"
    return 0, ""


def _line(message: str) -> str:
    return " ".join(message.split())
