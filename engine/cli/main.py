"""Run a command and turn its errors into exit codes: one line for a user's mistake, a traceback for a bug."""

import contextlib
import errno
import logging
import os
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine import distributed, terminal
from engine.errors import FailedShardsError, NonFiniteError, OutOfMemoryError, SettingsError, UserError
from export.errors import ExportError

if TYPE_CHECKING:
    from torch.distributed import Store

logger = logging.getLogger(__name__)

Command = Callable[[Sequence[str]], None]

_REPEAT = "then repeat the command, with --resume if it has that option"
REMEDIES = {
    errno.ENOSPC: f"; free some space on that disk, {_REPEAT}",
    errno.EDQUOT: f"; free some space or raise the quota, {_REPEAT}",
    errno.EFBIG: f"; raise the file size limit (ulimit -f), {_REPEAT}",
}
"""What to do about an OSError, by its number."""


def main(command: Command, arguments: Sequence[str] | None = None) -> int:
    """Run `command`, print why it failed on stderr, and return the exit code.

    Exit codes: 0 for success; 1 for non-finite numbers, too little memory, and shards or files that fail; 2
    for a mistake of the user; 130 for Ctrl-C; 143 for SIGTERM.

    Args:
        arguments: arguments of the command, by default those of this process.
    """
    terminal.protect_streams()
    with terminal.interruptible():
        code, message = outcome(command, sys.argv[1:] if arguments is None else arguments)
    if not code and (lost := terminal.lost_output()):
        code, message = 1, _one_line(f"error: standard output: {lost.strerror}; the work itself is done")
    if message:
        print(message, file=sys.stderr)
    return code


def outcome(command: Command, arguments: Sequence[str]) -> tuple[int, str]:
    """Run `command`, and return its exit code and the reason, which is empty after success.

    The reason is one line, or one for each wrong setting.
    """
    try:
        with terminal.on_console(arguments) as rest:
            command(rest)
    except SettingsError as error:
        return 2, f"error: {error}"
    except (UserError, ExportError) as error:
        return 2, _one_line(f"error: {error}")
    except (NonFiniteError, OutOfMemoryError, FailedShardsError) as error:
        return 1, _one_line(f"error: {error}")
    except ArgumentError as error:
        return 2, _one_line(f"error: {error}; --help lists the options")
    except OSError as error:
        return 1, _one_line(f"error: {error}{REMEDIES.get(error.errno or 0, '')}")
    except terminal.Terminated:
        return 143, "terminated"
    except KeyboardInterrupt:
        return 130, "interrupted"
    return 0, ""


def _one_line(message: str) -> str:
    return " ".join(message.split())


@contextmanager
def resumable(name: str, out: Path | str, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Log that the work called `name` starts and, on Ctrl-C or SIGTERM, print how to continue it.

    Enter it before anything slow. Only the main rank prints.

    Args:
        out: value of --out.
        has_begun: whether there is something to continue in `out`.
    """
    logger.info("%s: starting, with the results in %s", name, out)
    try:
        yield
    except KeyboardInterrupt:
        if distributed.is_main():
            hint = f"to continue, repeat the command with --out {out} --resume"
            print(hint if has_begun() else f"nothing was written to {out}", file=sys.stderr)
        raise


def main_on_ranks(command: Command) -> int:
    """Run `command` on one or several ranks with this process's arguments, and return the exit code.

    Only the main rank prints to stdout. The first rank that fails prints the reason, and all ranks that fail
    exit with its code. torchrun then stops the others and exits with 1 itself. SIGTERM ends a rank at once,
    even one that waits for another rank.
    """
    if distributed.world() == 1:
        return main(command)
    terminal.protect_streams()
    with contextlib.ExitStack() as stack:
        if not distributed.is_main():
            null = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123
            stack.enter_context(contextlib.redirect_stdout(null))
        code, message = _outcome_or_traceback(command)
    if code:
        _fail(code, message)
    return 0


def _outcome_or_traceback(command: Command) -> tuple[int, str]:
    try:
        return outcome(command, sys.argv[1:])
    except Exception:
        return 1, traceback.format_exc().rstrip()


def _fail(code: int, message: str) -> None:
    """Exit without interpreter shutdown, which can hang in a pending collective."""
    import torch

    with contextlib.suppress(torch.distributed.DistError):  # the launcher has ended, or is not torch's
        store = _store()
        if store.add("failures", 1) > 1:
            os._exit(int(store.get("exit code")))  # the first rank that failed has printed the reason
        print(message, file=sys.stderr, flush=True)
        store.set("exit code", str(code))
        os._exit(code)
    print(message, file=sys.stderr, flush=True)
    os._exit(code)


def _store() -> "Store":
    """Return the launcher's store for the ranks of all machines, which outlives their process group."""
    from torch.distributed import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"exit/{attempt}", TCPStore(host, port, is_master=False))
