"""Fork workers from a process that has already imported what they need.

A worker that starts from nothing imports torch, diffusers and open_clip for seconds. The server imports them
once, starts no thread and initialises no device, so that each of its forks may do both.

multiprocessing's own fork server does not fit: there is one in a process, with the environment of the time
when it was started and with whatever its first user preloads; SIGTERM ends it; and when it is killed, all of
its workers look dead.
"""

import collections
import contextlib
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.spawn import get_executable
from pathlib import Path

from engine.workers.events import Report, Unable
from engine.workers.job import Job
from engine.workers.launched import Launched
from engine.workers.preload import preload
from engine.workers.process import Place, work

IS_AVAILABLE = sys.platform == "linux"
"""macOS libraries do not survive a fork, and Windows has no fork."""
NAME = "fork server"
"""The server's process under `ps` and `top`, which show each worker under the worker's name."""
ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals that reach a whole group of processes and are for the coordinator to act upon."""
NUMBER = struct.Struct("q")
ANSWER_SECONDS = 60.0
"""A server that takes longer to answer has been stopped."""


class ForkServer:
    """The client of a fork server, which ends when `kill` is called or this process ends.

    The constructor does not wait: the first worker is forked once everything is imported. Workers survive
    the server and end when their pipes are closed.
    """

    def __init__(self, names: Sequence[str], *, on_gpu: bool) -> None:
        """Start a server that imports `names`, which are as in `preload`; `on_gpu`: its workers use CUDA."""
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(ANSWER_SECONDS)
        with theirs, _blocked(ENDING):  # the server ignores them from its first line on
            self._process = subprocess.Popen(
                _command(f"serve({theirs.fileno()}, {list(names)!r}, {on_gpu})"),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def start(self, name: str, job: Job, place: Place) -> "Forked":
        """Start a worker. If the server has died, the worker is one that has ended."""
        ours, theirs = Pipe()
        with theirs, contextlib.suppress(OSError):
            socket.send_fds(self._socket, [NUMBER.pack(0)], [theirs.fileno()])
        with contextlib.suppress(OSError):
            ours.send((name, job, place))
        return Forked(ours, self)

    def exit_code(self, pid: int) -> int | None:
        """Wait until a worker has ended; None if the server has died and nobody knows."""
        try:
            self._socket.sendall(NUMBER.pack(pid))
            answer = self._socket.recv(NUMBER.size)
        except OSError:
            self.kill()
            return None
        return NUMBER.unpack(answer)[0] if answer else None

    def kill(self) -> None:
        """End the server at once; workers that are asked for and not forked yet will not be."""
        self._process.kill()
        self._process.wait()
        self._socket.close()


class Forked(Launched):
    """A forked worker. It says its process id before anything else."""

    def __init__(self, pipe: Connection, server: ForkServer) -> None:
        super().__init__(pipe)
        self._server = server
        self._pid: int | None = None
        self._is_condemned = False

    def reports(self) -> Iterator[Report]:
        for said in super().reports():
            if isinstance(said, int):
                self._begin(said)
            else:
                yield said

    def _begin(self, pid: int) -> None:
        self._pid = pid
        if self._is_condemned:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """End it at once, and the server with it if the worker has not been forked yet."""
        with contextlib.suppress(EOFError, OSError):  # it has ended
            collections.deque(self.reports(), maxlen=0)
            self._is_condemned = True
            if self._pid is None:
                self._server.kill()
            else:
                os.kill(self._pid, signal.SIGKILL)

    def join(self) -> int | None:
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll(None):
                collections.deque(self.reports(), maxlen=0)
        self.pipe.close()
        pid, self._pid = self._pid, None  # another process may get it from now on
        return None if pid is None else self._server.exit_code(pid)


def _command(call: str) -> list[str]:
    """Return the command line of an interpreter like this one that makes a call to this module."""
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from engine.workers import fork_server; fork_server.{call}"
    )
    return [os.fsdecode(get_executable()), *flags, "-c", code]


def serve(descriptor: int, names: Sequence[str], on_gpu: bool) -> None:
    """Run a fork server, at the other end of whose socket is a `ForkServer`, until that is closed."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    name_process(NAME)
    preload(names)
    gc.freeze()  # the collections of workers leave the pages that they share alone
    with socket.socket(fileno=descriptor) as control, contextlib.suppress(ConnectionError):
        while True:
            request, descriptors, _, _ = socket.recv_fds(control, NUMBER.size, 1)
            if not request:
                return
            if descriptors:
                _fork(control, descriptors[0], on_gpu)
            else:
                control.sendall(NUMBER.pack(_exit_code(*NUMBER.unpack(request))))


def _fork(control: socket.socket, descriptor: int, on_gpu: bool) -> None:
    """Fork a worker, which gets its shards by the pipe of that descriptor."""
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as pipe:
        try:
            pid = os.fork()
        except OSError as error:
            pipe.send(Unable(f"no process can be started: {error}"))
            return
        if pid == 0:
            control.close()
            _end_as_worker(pipe, on_gpu)


def _exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def begin(descriptor: int) -> None:
    """Be a worker in a new interpreter."""
    _end_as_worker(Connection(descriptor), on_gpu=False)


def _end_as_worker(pipe: Connection, on_gpu: bool) -> None:
    """Run what a worker's process runs, in this one, and end it."""
    code = 1
    try:
        if on_gpu and _cuda_is_unusable():
            os.set_inheritable(pipe.fileno(), True)
            command = _command(f"begin({pipe.fileno()})")
            os.execv(command[0], command)
        _work(pipe)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _cuda_is_unusable() -> bool:
    """Return whether an import has initialised CUDA before the fork.

    diffusers counts GPUs. torch does so without CUDA if NVML is installed and CUDA_VISIBLE_DEVICES names no
    part of a GPU (MIG).
    """
    import torch

    return torch.cuda._is_in_bad_fork()


def _work(pipe: Connection) -> None:
    try:
        pipe.send(os.getpid())
        name, job, place = pipe.recv()
    except (EOFError, OSError):
        return  # the coordinator has ended
    name_process(name)
    work(pipe, job, place)


def name_process(name: str) -> None:
    """Show this process under `name` in `ps` and `top`, which take 15 characters."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


@contextlib.contextmanager
def _blocked(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Hold signals back for this thread, and for the processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
