"""How a command ends that torchrun may have started in several processes: with one line, whichever fails."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine import cli, ranks, terminal

if TYPE_CHECKING:
    from torch.distributed import Store

Command = Callable[[Sequence[str]], None]


def main(command: Command) -> int:
    """`engine.cli.main` for the command line's arguments; the exit code.

    On several ranks all but the main one are silent. The rank that fails first says why, and its exit code is
    that of every rank which fails with it, or because of it; torchrun stops those that are still at work, and
    itself ends with 1.
    """
    if ranks.world() == 1:
        return cli.main(command)
    terminal.settle()
    with contextlib.ExitStack() as stack:
        if not ranks.is_main():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        code, message = _outcome(command)
    if code:
        _fail(code, message)
    return 0


def _outcome(command: Command) -> tuple[int, str]:
    try:
        return cli.outcome(command, sys.argv[1:])
    except Exception:
        return 1, traceback.format_exc().rstrip()


def _fail(code: int, message: str) -> None:
    """Ends the process without the interpreter's leave-taking, which may wait for a collective for ever."""
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
