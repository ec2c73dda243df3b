"""A crew of processes on this machine, each with its own cores and, where there are GPUs, one of them."""

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait

from engine.workers.crew import Crew, Member
from engine.workers.events import Event, Left, Lost
from engine.workers.job import Job
from engine.workers.process import Place, work


class _Process(Member):
    def __init__(self, name: str, job: Job, place: Place) -> None:
        super().__init__(name, job.depth)
        self.place = place
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, job, place), name=name, daemon=True)
        self.process.start()
        theirs.close()

    def send(self, number: int | None) -> None:
        try:
            self.pipe.send(number)
        except OSError:
            assert self.process.sentinel in wait([self.process.sentinel], timeout=60), "the pipe alone broke"

    def dismiss(self) -> None:
        self.send(None)

    def kill(self) -> None:
        self.process.kill()

    def bury(self) -> None:
        self.process.join()
        self.pipe.close()

    def news(self) -> Iterable[Event]:
        """What it has said; after the last word of a dead one, that it is dead."""
        dead = self.process.sentinel in wait([self.process.sentinel], timeout=0)
        try:
            while self.pipe.poll():
                yield Event(self.name, self.pipe.recv())
        except (EOFError, OSError):
            dead = True
        if dead:
            self.process.join()
            self.pipe.close()
            yield Event(self.name, self._end())

    def _end(self) -> Left | Lost:
        if self.process.exitcode == 0 and not self.under_way:
            return Left()
        return Lost(tuple(self.under_way), _cause(self.process.exitcode))


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        killed = f"worker killed by {signal.Signals(-code).name}"
        return f"{killed} (out of memory?)" if code == -signal.SIGKILL else killed
    return f"worker ended with exit code {code}"


class PoolCrew(Crew[_Process]):
    """`capacity` is the number asked for."""

    def __init__(self, job: Job, workers: int) -> None:
        super().__init__()
        self._job, self._capacity = job, workers
        threads = job.recipe.compute.threads
        assert threads is not None, "the recipe is settled"
        self._cores = _core_groups(threads)
        self._gpus = _gpus() if job.recipe.compute.device == "cuda" else []

    @property
    def capacity(self) -> int:
        return self._capacity

    def start(self, name: str) -> _Process:
        return _Process(name, self._job, self._free_place())

    def collect(self, seconds: float) -> Iterable[tuple[_Process, Event]]:
        heard: list[int | Connection] = [member.process.sentinel for member in self.members]
        wait([*heard, *(member.pipe for member in self.members)], timeout=seconds)
        for member in list(self.members):
            for event in member.news():
                yield member, event

    def _free_place(self) -> Place:
        """The GPU with the fewest workers; cores of its own, as long as there are any."""
        taken = [member.place for member in self.members]
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
