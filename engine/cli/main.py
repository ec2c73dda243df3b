"""How a command ends: what the user can mend is one line and an exit code, a defect is a traceback."""

import contextlib
import errno
import os
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine import distributed, terminal
from engine.errors import FailedShardsError, NonFiniteError, OutOfMemoryError, UserError
from export.errors import ExportError

if TYPE_CHECKING:
    from torch.distributed import Store

Command = Callable[[Sequence[str]], None]

_AGAIN = "then repeat the command, with --resume if it has that option"
REMEDIES = {
    errno.ENOSPC: f"; free some space on that disk, {_AGAIN}",
    errno.EDQUOT: f"; free some space or raise the quota, {_AGAIN}",
    errno.EFBIG: f"; raise the limit on the size of files (ulimit -f), {_AGAIN}",
}


def main(command: Command, arguments: Sequence[str] | None = None) -> int:
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


def outcome(command: Command, arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code of `command`, and one line that says why it failed, empty where it did not."""
    try:
        with terminal.on_console(arguments) as rest:
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


def main_on_ranks(command: Command) -> int:
    """`main` for the command line's arguments; the exit code.

    On several ranks all but the main one are silent. The rank that fails first says why, and its exit code is
    that of every rank which fails with it, or because of it; torchrun stops those that are still at work, and
    itself ends with 1.
    """
    if distributed.world() == 1:
        return main(command)
    terminal.settle()
    with contextlib.ExitStack() as stack:
        if not distributed.is_main():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123
            stack.enter_context(contextlib.redirect_stdout(nowhere))
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
    """Ends the process without interpreter shutdown, which can hang in a pending collective."""
    import torch

    with contextlib.suppress(torch.distributed.DistError):  # the launcher is gone, or is none of torch's
        store = _store()
        if store.add("failures", 1) > 1:
            os._exit(int(store.get("exit code")))  # once the first has spoken
        print(message, file=sys.stderr, flush=True)
        store.set("exit code", str(code))
        os._exit(code)
    print(message, file=sys.stderr, flush=True)
    os._exit(code)


def _store() -> "Store":
    """What the launcher keeps for the ranks of all machines; it is there before and after their group."""
    from torch.distributed import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"ending/{attempt}", TCPStore(host, port, is_master=False))
