"""Fork workers from a process that has already imported what they need.

A new interpreter takes seconds to import torch, diffusers and open_clip. The server imports them once. It
starts no thread and initialises no device, so that each of its forks may do both.

The fork server of multiprocessing does not fit: there is only one per process, with the environment and the
preloaded modules of its first use; SIGTERM ends it; and if it is killed, all of its workers look dead.
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

from engine.generation.messages import Job, LoadFailed, Report, Started
from engine.generation.workers.preload import preload
from engine.generation.workers.worker_process import WorkerPlacement, WorkerProcess, work

IS_AVAILABLE = sys.platform == "linux"
"""Whether processes can be forked: macOS libraries do not survive a fork, and Windows has no fork."""
NAME = "fork server"
"""Name of the server's process in `ps` and `top`. Each worker's process is shown under the worker's name."""
ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals that reach the whole process group and are handled by the coordinator."""
NUMBER = struct.Struct("q")
ANSWER_SECONDS = 5.0
"""Maximum time the server takes to answer; after that it counts as stopped. It is only asked for the exit
code of a worker that has already exited, so its imports are done by then."""
EXIT_SECONDS = 60.0
"""Maximum time to wait for a killed worker to exit, for instance while it frees a GPU."""
BINDING = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")
"""Variables that bind threads to cores. OpenMP reads them when it is loaded, which is in the server: all of
its workers might then compute on the same cores."""


def can_fork() -> bool:
    """Return whether workers can be forked on this system and with this environment."""
    return IS_AVAILABLE and not any(name in os.environ for name in BINDING)


class ForkServer:
    """The client of a fork server, which exits when `kill` is called or this process exits.

    The constructor does not wait for the imports; the first worker is forked after them. Workers survive the
    server and exit when their pipes are closed.
    """

    def __init__(self, names: Sequence[str], *, on_gpu: bool) -> None:
        """Start a server that preloads `names`, see `preload`; `on_gpu`: its workers use CUDA."""
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(ANSWER_SECONDS)
        with theirs, _blocked(ENDING):  # until the server ignores them
            self._process = subprocess.Popen(
                _command(f"serve({theirs.fileno()}, {list(names)!r}, {on_gpu})"),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def start(self, name: str, job: Job, placement: WorkerPlacement) -> "ForkedProcess":
        """Start a worker. If the server has died, the worker counts as dead as well."""
        ours, theirs = Pipe()
        with theirs, contextlib.suppress(OSError):
            socket.send_fds(self._socket, [NUMBER.pack(0)], [theirs.fileno()])
        with contextlib.suppress(OSError):
            ours.send((name, job, placement))
        return ForkedProcess(ours, self)

    def exit_code(self, pid: int) -> int | None:
        """Wait until a worker has exited. Return its exit code, or None if the server is dead or stopped."""
        _wait_for(pid)
        try:
            self._socket.sendall(NUMBER.pack(pid))
            answer = self._socket.recv(NUMBER.size)
        except OSError:
            self.kill()
            return None
        return NUMBER.unpack(answer)[0] if answer else None

    def kill(self) -> None:
        """Kill the server; workers that it has not forked yet never start."""
        self._process.kill()
        self._process.wait()
        self._socket.close()


class ForkedProcess(WorkerProcess):
    """A forked worker. Its first report is its process id."""

    def __init__(self, pipe: Connection, server: ForkServer) -> None:
        super().__init__(pipe)
        self._server = server
        self._pid: int | None = None
        self._is_refused = False
        """Whether the server could not fork it."""
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
        """Kill the worker without waiting; if it has not been forked yet, kill the server."""
        with contextlib.suppress(EOFError, OSError):  # it has exited
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
        """Whether it will exit although its pipe stays open, which a process that it forked may hold."""
        return self._is_refused or (self._kill_requested and self._pid is not None)


def _wait_for(pid: int) -> None:
    """Wait until a process has exited, whoever its parent is."""
    with contextlib.suppress(AttributeError, OSError):  # it has exited, or Python or the kernel lacks pidfd
        descriptor = os.pidfd_open(pid)
        try:
            wait([descriptor], timeout=EXIT_SECONDS)
        finally:
            os.close(descriptor)


def _command(call: str) -> list[str]:
    """Return the command line that runs `call` of this module in an interpreter like this one."""
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from engine.generation.workers import fork_server; fork_server.{call}"
    )
    return [os.fsdecode(get_executable()), *flags, "-c", code]


def serve(descriptor: int, names: Sequence[str], on_gpu: bool) -> None:
    """Run a fork server until its `ForkServer` closes the socket."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is inherited as ignored, exit codes are lost
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    name_process(NAME)
    preload(names)
    _flush()  # otherwise each worker prints the output of the imports again
    gc.freeze()  # keep the workers' garbage collections from copying shared pages
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
    """Fork a worker that receives its shards through the pipe `descriptor`."""
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as pipe:
        try:
            pid = os.fork()
        except OSError as error:
            pipe.send(LoadFailed(f"cannot start a process: {error}"))
            return
        if pid == 0:
            control.close()
            _end_as_worker(pipe, on_gpu)


def _exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def begin(descriptor: int) -> None:
    """Run a worker in this new interpreter."""
    os.set_inheritable(descriptor, False)
    _end_as_worker(Connection(descriptor), on_gpu=False)


def _end_as_worker(pipe: Connection, on_gpu: bool) -> None:
    """Run a worker in this process, then exit."""
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
        with contextlib.suppress(AttributeError, OSError, ValueError):  # the stream is None, broken or closed
            stream.flush()


def _cuda_is_unusable() -> bool:
    """Return whether an import initialised CUDA before the fork.

    diffusers counts GPUs on import. torch does that without CUDA only if NVML is installed and
    CUDA_VISIBLE_DEVICES names no MIG instance.
    """
    import torch

    return torch.cuda._is_in_bad_fork()


def _work(pipe: Connection) -> None:
    try:
        pipe.send(Started(os.getpid()))
        name, job, placement = pipe.recv()
    except (EOFError, OSError):
        return  # the coordinator has exited
    name_process(name)
    work(pipe, job, placement)


def name_process(name: str) -> None:
    """Show this process as `name` in `ps` and `top`, which display 15 characters."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name, encoding="utf-8")


@contextlib.contextmanager
def _blocked(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Block signals in this thread, and in the processes that it starts, inside the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
