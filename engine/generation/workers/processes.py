"""A pool of processes on this machine, each bound to its own cores and, on device cuda, to one GPU."""

import os
import signal
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Self

from engine.generation.messages import Event, Exited, Job, Lost
from engine.generation.workers.fork_server import ForkServer, can_fork
from engine.generation.workers.pool import WorkerHandle, WorkerPool
from engine.generation.workers.preload import names_for
from engine.generation.workers.worker_process import SpawnedProcess, WorkerPlacement, WorkerProcess


class _ProcessHandle(WorkerHandle):
    def __init__(self, name: str, job: Job, placement: WorkerPlacement, process: WorkerProcess) -> None:
        super().__init__(name, job.depth)
        self.placement, self.process = placement, process

    def send(self, number: int | None) -> None:
        with suppress(OSError):  # it has exited, which `events` will report
            self.process.pipe.send(number)

    def dismiss(self) -> None:
        self.send(None)

    def kill(self) -> None:
        self.process.kill()

    def join(self) -> None:
        self.process.join()

    def events(self) -> Iterable[Event]:
        """Yield its reports so far; if it has exited, Exited or Lost after them."""
        try:
            for report in self.process.reports():
                yield Event(self.name, report)
        except (EOFError, OSError):
            yield Event(self.name, self._end(self.process.join()))

    def _end(self, code: int | None) -> Exited | Lost:
        has_finished = code == 0 or (code is None and self.leaving)
        if has_finished and not self.under_way:
            return Exited()
        return Lost(tuple(self.under_way), _cause(code))


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        killed = f"worker killed by {signal.Signals(-code).name}"
        return f"{killed} (out of memory?)" if code == -signal.SIGKILL else killed
    if code is None:
        return "worker died, and so had the fork server that knows its exit code"
    return f"worker died with exit code {code}"


class ProcessPool(WorkerPool[_ProcessHandle]):
    """A pool of `workers` processes."""

    def __init__(self, job: Job, workers: int, *, forks: bool | None = None) -> None:
        """Create an empty pool.

        With `forks` a fork server starts the workers, without it each is a new interpreter; None: fork if the
        system can.
        """
        super().__init__()
        self._forks = can_fork() if forks is None else forks
        self._job, self._capacity = job, workers
        threads = job.recipe.compute.threads
        assert threads is not None, "the recipe is not resolved"
        self._cores = _core_groups(threads)
        self._gpus = _gpus() if job.recipe.compute.device == "cuda" else []
        self._server: ForkServer | None = None

    @property
    def capacity(self) -> int:
        return self._capacity

    def start(self, name: str) -> _ProcessHandle:
        placement = self._free_placement()
        return _ProcessHandle(name, self._job, placement, self._start_process(name, placement))

    def _start_process(self, name: str, placement: WorkerPlacement) -> WorkerProcess:
        if not self._forks:
            return SpawnedProcess(name, self._job, placement)
        if self._server is None or not self._server.is_alive:
            self.close()
            self._server = self._new_server()
        return self._server.start(name, self._job, placement)

    def _new_server(self) -> ForkServer:
        recipe = self._job.recipe
        return ForkServer(names_for(recipe, self._job.url), on_gpu=recipe.compute.device == "cuda")

    def __enter__(self) -> Self:
        if self._forks:
            self._server = self._new_server()
        return self

    def close(self) -> None:
        if self._server is not None:
            self._server.kill()

    def collect(self, seconds: float) -> Iterable[tuple[_ProcessHandle, Event]]:
        wait([worker.process.pipe for worker in self.workers], timeout=seconds)
        for worker in list(self.workers):
            for event in worker.events():
                yield worker, event

    def _free_placement(self) -> WorkerPlacement:
        """Return the GPU with the fewest workers, and cores that no worker has, if any are left."""
        taken = [worker.placement for worker in self.workers]
        cores = [group for group in self._cores if group not in [each.cores for each in taken]]
        users = Counter(each.gpu for each in taken)
        gpu = min(self._gpus, key=lambda each: users[each], default=None)
        return WorkerPlacement(gpu=gpu, cores=cores[0] if cores else None)


def _core_groups(threads: int) -> list[tuple[int, ...]]:
    """Return the cores of this process in groups of `threads`, without an incomplete last group."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return [tuple(cores[first : first + threads]) for first in range(0, len(cores) - threads + 1, threads)]


def _gpus() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(index) for index in range(torch.cuda.device_count())]
