"""Runs the engine's commands in processes that are killed after so many seconds.

A process is forked from one that has imported everything and started no thread, so that it begins at once:
`python -m tests.mortal` reads one JSON request a line and answers with one line.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """`code` is the exit code, or -9 for a process that was killed."""

    code: int
    seconds: float


class Mortals:
    """The client of the forking process. `log` gets what the commands print."""

    def __init__(self, server: "subprocess.Popen[str]", log: Path) -> None:
        self._server, self._log = server, log

    def run(self, command: str, arguments: Sequence[str], *, seconds: float | None = None) -> Ended:
        """`python -m engine.COMMAND ARGUMENTS`, killed after `seconds` where it is not done by then."""
        request = {
            "command": command,
            "arguments": list(arguments),
            "seconds": seconds,
            "log": str(self._log),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))

    def until_done(
        self, command: str, arguments: Sequence[str], *, draw: random.Random, seconds: float
    ) -> int:
        """Kills the command at random moments of its first `seconds` and resumes it, until it is done.

        The number of kills.
        """
        kills, resume = 0, []
        while True:
            ended = self.run(command, [*arguments, *resume], seconds=draw.uniform(0, 0.9) * seconds)
            if ended.code == 0:
                return kills
            assert ended.code == -signal.SIGKILL, self._log.read_text()[-500:]
            kills, resume = kills + 1, ["--resume"]


@contextlib.contextmanager
def mortals(log: Path) -> Iterator[Mortals]:
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.mortal"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with server:
        yield Mortals(server, log)
        assert server.stdin is not None
        server.stdin.close()


def serve() -> None:
    import diffusers  # noqa: F401
    import nvidia.dali.fn  # noqa: F401
    import open_clip  # noqa: F401
    import transformers  # noqa: F401

    from engine import distill, distillation, generate, shards  # noqa: F401

    commands = {"generate": generate.command, "distill": distill.command}
    for line in sys.stdin:
        request = json.loads(line)
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _end_as(commands[request["command"]], request)
        code = _await(child, request["seconds"])
        print(json.dumps({"code": code, "seconds": time.monotonic() - start}), flush=True)


def _end_as(command, request) -> None:  # noqa: ANN001
    from engine.cli import main

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        code = main(command, request["arguments"])
    finally:
        sys.stdout.flush()
        os._exit(code)


def _await(child: int, seconds: float | None) -> int:
    """The exit code of the child, which is killed where it lives on after `seconds`."""
    last = time.monotonic() + (seconds if seconds is not None else float("inf"))
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > last:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.002)


if __name__ == "__main__":
    serve()
