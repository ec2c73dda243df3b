"""A pool of processes on this machine, each with its own cores and, where there are GPUs, one of them."""

import os
import signal
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Self

from engine.generation.messages import Event, Job, Left, Lost
from engine.generation.workers.fork_server import ForkServer, can_fork
from engine.generation.workers.pool import WorkerHandle, WorkerPool
from engine.generation.workers.preload import names_for
from engine.generation.workers.worker_process import Launched, Place, Spawned


class _ProcessWorker(WorkerHandle):
    def __init__(self, name: str, job: Job, place: Place, launched: Launched) -> None:
        super().__init__(name, job.depth)
        self.place, self.launched = place, launched

    def send(self, number: int | None) -> None:
        with suppress(OSError):  # it has ended, as `events` will find
            self.launched.pipe.send(number)

    def dismiss(self) -> None:
        self.send(None)

    def kill(self) -> None:
        self.launched.kill()

    def join(self) -> None:
        self.launched.join()

    def events(self) -> Iterable[Event]:
        """What it has said; after the last word of a dead one, that it is dead."""
        try:
            for report in self.launched.reports():
                yield Event(self.name, report)
        except (EOFError, OSError):
            yield Event(self.name, self._end(self.launched.join()))

    def _end(self, code: int | None) -> Left | Lost:
        has_left = code == 0 or (code is None and self.leaving)
        if has_left and not self.under_way:
            return Left()
        return Lost(tuple(self.under_way), _cause(code))


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        killed = f"worker killed by {signal.Signals(-code).name}"
        return f"{killed} (out of memory?)" if code == -signal.SIGKILL else killed
    if code is None:
        return "worker ended, and so had the process that forked it"
    return f"worker ended with exit code {code}"


class ProcessPool(WorkerPool[_ProcessWorker]):
    """`capacity` is the number asked for."""

    def __init__(self, job: Job, workers: int, *, forks: bool | None = None) -> None:
        """With `forks` a fork server starts the workers, else each is a new interpreter; None: if it can."""
        super().__init__()
        self._forks = can_fork() if forks is None else forks
        self._job, self._capacity = job, workers
        threads = job.recipe.compute.threads
        assert threads is not None, "the recipe is settled"
        self._cores = _core_groups(threads)
        self._gpus = _gpus() if job.recipe.compute.device == "cuda" else []
        self._server: ForkServer | None = None

    @property
    def capacity(self) -> int:
        return self._capacity

    def start(self, name: str) -> _ProcessWorker:
        place = self._free_place()
        return _ProcessWorker(name, self._job, place, self._launched(name, place))

    def _launched(self, name: str, place: Place) -> Launched:
        if not self._forks:
            return Spawned(name, self._job, place)
        if self._server is None or not self._server.is_alive:
            self.close()
            self._server = self._new_server()
        return self._server.start(name, self._job, place)

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

    def collect(self, seconds: float) -> Iterable[tuple[_ProcessWorker, Event]]:
        wait([worker.launched.pipe for worker in self.workers], timeout=seconds)
        for worker in list(self.workers):
            for event in worker.events():
                yield worker, event

    def _free_place(self) -> Place:
        """The GPU with the fewest workers; cores of its own, as long as there are any."""
        taken = [worker.place for worker in self.workers]
        cores = [group for group in self._cores if group not in [place.cores for place in taken]]
        users = Counter(place.gpu for place in taken)
        gpu = min(self._gpus, key=lambda each: users[each], default=None)
        return Place(gpu=gpu, cores=cores[0] if cores else None)


def _core_groups(threads: int) -> list[tuple[int, ...]]:
    """The cores of this process, `threads` in a group."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return [tuple(cores[first : first + threads]) for first in range(0, len(cores) - threads + 1, threads)]


def _gpus() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(index) for index in range(torch.cuda.device_count())]
