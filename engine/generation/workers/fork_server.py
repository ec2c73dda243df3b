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
from multiprocessing.connection import Connection, wait
from multiprocessing.spawn import get_executable
from pathlib import Path

from engine.generation.messages import Job, Report, Started, Unable
from engine.generation.workers.preload import preload
from engine.generation.workers.worker_process import Launched, Place, work

IS_AVAILABLE = sys.platform == "linux"
"""macOS libraries do not survive a fork, and Windows has no fork."""
NAME = "fork server"
"""The server's process under `ps` and `top`, which show each worker under the worker's name."""
ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals that reach a whole group of processes and are for the coordinator to act upon."""
NUMBER = struct.Struct("q")
ANSWER_SECONDS = 5.0
"""A server that takes longer to answer has been stopped: it is asked only about workers that it has forked,
so its imports are done, and only once they have ended."""
EXIT_SECONDS = 60.0
"""A worker that takes longer to end, for instance to free a GPU, is not waited for."""
BINDING = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")
"""Variables that bind threads to cores. OpenMP reads them when it is loaded: in the server, which has all
cores, so all of its workers might compute on the same ones."""


def can_fork() -> bool:
    """Return whether workers may be forked on this system and with this environment."""
    return IS_AVAILABLE and not any(name in os.environ for name in BINDING)


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
        """Wait until a worker has ended; None if the server has died, or is stopped, and nobody knows."""
        _wait_for(pid)
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
    """A forked worker. Its first report is its process id."""

    def __init__(self, pipe: Connection, server: ForkServer) -> None:
        super().__init__(pipe)
        self._server = server
        self._pid: int | None = None
        self._is_refused = False
        """The server could not fork it."""
        self._kill_requested = False

    def reports(self) -> Iterator[Report]:
        for report in super().reports():
            if isinstance(report, Started):
                self._begin(report.pid)
                continue
            if self._pid is None:  # only the server reports before `Started`
                self._is_refused = True
            yield report

    def _begin(self, pid: int) -> None:
        self._pid = pid
        if self._kill_requested:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """End it at once, and the server with it if the worker has not been forked yet."""
        with contextlib.suppress(EOFError, OSError):  # it has ended
            collections.deque(self.reports(), maxlen=0)
            self._kill_requested = True
            if self._pid is not None:
                os.kill(self._pid, signal.SIGKILL)
            elif not self._is_refused:
                self._server.kill()

    def join(self) -> int | None:
        with contextlib.suppress(EOFError, OSError):
            while not self._is_ending and self.pipe.poll(None):
                collections.deque(self.reports(), maxlen=0)
        self.pipe.close()
        pid, self._pid = self._pid, None  # another process may get it from now on
        return None if pid is None else self._server.exit_code(pid)

    @property
    def _is_ending(self) -> bool:
        """Whether it ends even if its pipe stays open, as a process that it forked may hold that."""
        return self._is_refused or (self._kill_requested and self._pid is not None)


def _wait_for(pid: int) -> None:
    """Wait until a process has ended, whoever its parent is."""
    with contextlib.suppress(AttributeError, OSError):  # it is gone, or Python or the kernel has no pidfd
        descriptor = os.pidfd_open(pid)
        try:
            wait([descriptor], timeout=EXIT_SECONDS)
        finally:
            os.close(descriptor)


def _command(call: str) -> list[str]:
    """Return the command line of an interpreter like this one that makes a call to this module."""
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from engine.generation.workers import fork_server; fork_server.{call}"
    )
    return [os.fsdecode(get_executable()), *flags, "-c", code]


def serve(descriptor: int, names: Sequence[str], on_gpu: bool) -> None:
    """Run a fork server, at the other end of whose socket is a `ForkServer`, until that is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by the coordinator, it would lose exit codes
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    name_process(NAME)
    preload(names)
    _flush()  # else each worker would print again what the imports have printed
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
    os.set_inheritable(descriptor, False)
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
        _flush()
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, broken or closed
            stream.flush()


def _cuda_is_unusable() -> bool:
    """Return whether an import has initialised CUDA before the fork.

    diffusers counts GPUs. torch does so without CUDA if NVML is installed and CUDA_VISIBLE_DEVICES names no
    part of a GPU (MIG).
    """
    import torch

    return torch.cuda._is_in_bad_fork()


def _work(pipe: Connection) -> None:
    try:
        pipe.send(Started(os.getpid()))
        name, job, place = pipe.recv()
    except (EOFError, OSError):
        return  # the coordinator has ended
    name_process(name)
    work(pipe, job, place)


def name_process(name: str) -> None:
    """Show this process under `name` in `ps` and `top`, which take 15 characters."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name, encoding="utf-8")


@contextlib.contextmanager
def _blocked(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Hold signals back for this thread, and for the processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
