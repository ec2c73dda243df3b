"""Run the project's commands in processes forked from one that has imported everything.

Such a process does what `python -m MODULE` does, without the seconds of imports: the module runs as
`__main__`, with its own arguments, environment, output files and exit code. `python -m tests.commands` is the
server; it reads one JSON request a line and answers with one line.
"""

import atexit
import contextlib
import gc
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
POLL_SECONDS = 0.01


class Command:
    """A command in a separate process, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, server: "CommandServer", pid: int, log: Path) -> None:
        self.pid, self.returncode = pid, None
        self.seconds = 0.0
        """Wall-clock seconds, set when the command ends."""
        self._server, self._log, self._start = server, log, time.monotonic()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None if the command still runs."""
        return self._wait(0)

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, or None if the command still runs after `seconds`."""
        last = time.monotonic() + seconds
        while self._wait(min(POLL_SECONDS, max(0.0, last - time.monotonic()))) is None:
            if time.monotonic() > last:
                return None
        return self.returncode

    def _wait(self, seconds: float) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask(wait=self.pid, seconds=seconds)
            self.seconds = time.monotonic() - self._start
        return self.returncode

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait for the command to end, and return its stdout and stderr.

        If it still runs after `timeout` seconds, kill it and raise TimeoutError.
        """
        if self.wait(timeout) is None:
            self.kill()
            self.wait(10)
            raise TimeoutError(
                f"no end after {timeout} s: {self._text('out')[-1000:]}{self._text('err')[-3000:]}"
            )
        return self._text("out"), self._text("err")

    def _text(self, stream: str) -> str:
        return self._log.with_suffix(f".{stream}").read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class CommandServer:
    """The client of the forking process."""

    def __init__(self, process: "subprocess.Popen[str]", logs: Path) -> None:
        self._process, self._logs, self._started = process, logs, 0

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server of commands has ended; its traceback is on stderr"
        return json.loads(answer)

    def start(
        self, module: str, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None
    ) -> Command:
        """Start `python -m MODULE ARGUMENTS` in the project's root.

        `environment` is added to this process's own.
        """
        self._started += 1
        log = self._logs / str(self._started)
        for stream in ("out", "err"):
            log.with_suffix(f".{stream}").touch()  # a kill may come before the process opens them
        pid = self.ask(
            module=module,
            arguments=list(arguments),
            environment={**os.environ, **(environment or {})},
            log=str(log),
        )
        return Command(self, pid, log)

    def until_done(
        self, module: str, arguments: Sequence[str], *, draw: random.Random, seconds: float
    ) -> int:
        """Kill the command at random moments of its first `seconds` and resume it, until it is done.

        Return the number of kills.
        """
        kills, resume = 0, []
        while True:
            command = self.start(module, [*arguments, *resume])
            if command.wait(draw.uniform(0, 0.9) * seconds) is None:
                command.kill()
            _, error = command.communicate()
            if command.returncode == 0:
                return kills
            assert command.returncode == -signal.SIGKILL, error[-1000:]
            kills, resume = kills + 1, ["--resume"]

    def ranks(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        processes: int,
        environment: Mapping[str, str] | None = None,
    ) -> list[Command]:
        """Run the command on several ranks as torchrun would, and return them when all have ended.

        Each rank must end by itself, whereas torchrun stops the others when one fails.
        """
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            **(environment or {}),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "OMP_NUM_THREADS": "1",  # torchrun sets it, and Accelerate warns without it
        }
        ranks = [
            self.start(module, arguments, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(processes)
        ]
        try:
            for rank in ranks:
                rank.communicate()
        finally:
            for rank in ranks:
                rank.kill()
        return ranks


@contextlib.contextmanager
def command_server() -> Iterator[CommandServer]:
    with tempfile.TemporaryDirectory(prefix="commands-") as logs:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        with server:
            yield CommandServer(server, Path(logs))
            assert server.stdin is not None
            server.stdin.close()


def serve() -> None:
    """Answer requests until stdin is closed. This process starts no threads, so that it can be forked."""
    import accelerate  # noqa: F401
    import diffusers  # noqa: F401
    import open_clip  # noqa: F401
    import transformers  # noqa: F401

    from engine.generation import generate_bank  # noqa: F401
    from engine.training import from_banks  # noqa: F401

    with contextlib.suppress(ImportError):
        import nvidia.dali.fn  # noqa: F401
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # otherwise the kernel discards exit codes
    gc.freeze()  # garbage collection in the children then leaves the shared pages alone
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = _await(request["wait"], request["seconds"])
            running -= {request["wait"]} if answer is not None else set()
        else:
            answer = os.fork()
            if answer == 0:
                _become(request)
            running.add(answer)
        print(json.dumps(answer), flush=True)
    for child in running:
        os.kill(child, signal.SIGKILL)


def _await(child: int, seconds: float) -> int | None:
    last = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= last:
            return None
        time.sleep(0.002)


def _become(request: Mapping[str, Any]) -> None:
    """Run the module to its end, then exit without tearing down all imports, which takes a second."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    streams = {0: os.devnull, 1: f"{request['log']}.out", 2: f"{request['log']}.err"}
    for number, path in streams.items():
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = [request["module"], *request["arguments"]]
    sys.modules.pop(request["module"], None)  # runpy would warn about it
    code = 1
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
