"""Overlap the stages of consecutive shards.

`stage_groups` divides the stages and the CPU threads into groups, `overlapped` runs each group in a thread of
its own, and `torch_threads` and `own_stream` keep the groups' work on CPU and GPU apart.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from engine.config.compute import ComputeConfig
from engine.config.recipe import Recipe
from engine.generation.stages import STAGES, Stage

Item = TypeVar("Item")
Run = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class StageGroup:
    """Stages that run one after the other, at the same time as other groups."""

    stages: tuple[Stage, ...]
    threads: int
    """Number of CPU threads of each stage."""


def single_group(compute: ComputeConfig) -> tuple[StageGroup, ...]:
    """Return one group of all stages with all threads of a resolved configuration."""
    assert compute.threads is not None
    return (StageGroup(stages=STAGES, threads=compute.threads),)


def has_overlap(recipe: Recipe) -> bool:
    """Return whether stages overlap: a resolved recipe asks for it and has several stages."""
    return bool(recipe.compute.overlap) and sum(stage.total(recipe) > 0 for stage in STAGES) > 1


def stage_groups(recipe: Recipe) -> tuple[StageGroup, ...]:
    """Return the groups of a resolved recipe whose shards are made independently.

    On a CPU the groups' threads sum to `compute.threads`: a light stage gets one thread, or joins the
    previous group if there are fewer threads than stages; the other groups share the rest. On a GPU, threads
    only launch kernels, so each group has all of them.
    """
    compute = recipe.compute
    if not has_overlap(recipe):
        return single_group(compute)
    threads = compute.threads
    assert threads is not None
    if compute.device == "cuda":
        return tuple(StageGroup(stages=(stage,), threads=threads) for stage in STAGES)
    groups = _split(threads)
    light = sum(_is_light(group) for group in groups)
    rest, heavy = threads - light, len(groups) - light
    shares = iter([rest * (index + 1) // heavy - rest * index // heavy for index in range(heavy)])
    return tuple(
        StageGroup(stages=group, threads=1 if _is_light(group) else next(shares)) for group in groups
    )


def _split(threads: int) -> list[tuple[Stage, ...]]:
    """Return one group per stage; with fewer threads than stages, light stages join the previous group."""
    groups: list[tuple[Stage, ...]] = []
    for stage in STAGES:
        if groups and stage.is_light and threads < len(STAGES):
            groups[-1] += (stage,)
        else:
            groups.append((stage,))
    return groups


def _is_light(stages: tuple[Stage, ...]) -> bool:
    return all(stage.is_light for stage in stages)


def thread_counts(groups: tuple[StageGroup, ...]) -> dict[str, int]:
    """Return the number of CPU threads of each stage, by its name."""
    return {stage.name: group.threads for group in groups for stage in group.stages}


@dataclass(frozen=True)
class _Task(Generic[Item]):
    item: Item
    value: Any
    """Result of the runs so far, or the exception that one of them raised."""


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None
    """Error that stopped the pipeline; None at the end of the items."""


def overlapped(
    items: Iterator[Item],
    runs: Sequence[Run],
    *,
    around: Callable[[], AbstractContextManager[None]],
    stopping: threading.Event,
) -> Generator[tuple[Item, Any], None, None]:
    """Yield (item, result of all `runs` in turn), in the order of `items`, which may block.

    Each run has a thread, inside an `around()`. If a run raises an Exception, the exception becomes the
    item's result, and later runs skip the item. At most len(runs) + 1 items are in memory, including those
    that wait for a run and the one that the caller holds. An error of `items` or `around` is raised after the
    results of the items before it.

    Closing the generator early sets `stopping`, which the runs may check, and waits for the runs. It does not
    wait for `items`: the thread that reads them ends with the next item.
    """
    overlap = _Overlap(items, runs, around, stopping)
    try:
        yield from overlap.results()
    finally:
        overlap.close()


class _Overlap(Generic[Item]):
    def __init__(
        self,
        items: Iterator[Item],
        runs: Sequence[Run],
        around: Callable[[], AbstractContextManager[None]],
        stopping: threading.Event,
    ) -> None:
        self._around, self._stopping = around, stopping
        self._room = threading.Semaphore(len(runs) + 1)
        self._queues: list[SimpleQueue[_Task[Item] | _End]] = [SimpleQueue() for _ in range(len(runs) + 1)]
        self._workers = [
            threading.Thread(target=self._work, args=(run, index), name=f"stage-{index}", daemon=True)
            for index, run in enumerate(runs)
        ]
        reader = threading.Thread(target=self._read, args=(items,), name="stage-items", daemon=True)
        for thread in (*self._workers, reader):
            thread.start()

    def results(self) -> Iterator[tuple[Item, Any]]:
        while not isinstance(task := self._queues[-1].get(), _End):
            yield task.item, task.value
            del task  # hold no result while waiting for the next one
            self._room.release()
        if task.error is not None:
            raise task.error

    def close(self) -> None:
        self._stopping.set()
        self._room.release()
        for queue in self._queues:
            queue.put(_End())
        for worker in self._workers:
            worker.join()

    def _read(self, items: Iterator[Item]) -> None:
        first, end = self._queues[0], _End()
        self._room.acquire()
        try:
            for item in items:
                if self._stopping.is_set():
                    return
                first.put(_Task(item, item))
                self._room.acquire()
                if self._stopping.is_set():
                    return
        except BaseException as error:
            end = _End(error)
        first.put(end)

    def _work(self, run: Run, index: int) -> None:
        inbox, outbox = self._queues[index : index + 2]
        try:
            with self._around():
                while self._pass_on(run, inbox, outbox):
                    pass
        except BaseException as error:
            outbox.put(_End(error))

    def _pass_on(
        self,
        run: Run,
        inbox: "SimpleQueue[_Task[Item] | _End]",
        outbox: "SimpleQueue[_Task[Item] | _End]",
    ) -> bool:
        """Run one item and drop every reference to it. Return False at the end."""
        task = inbox.get()
        if isinstance(task, _End):
            outbox.put(task)
            return False
        skipped = isinstance(task.value, Exception) or self._stopping.is_set()
        outbox.put(task if skipped else _advanced(run, task))
        return True


def _advanced(run: Run, task: _Task[Item]) -> _Task[Item]:
    """Return the task after `run`.

    No frame in the traceback of an exception may refer to the result: such a cycle would keep images alive.
    """
    try:
        return replace(task, value=run(task.value))
    except Exception as error:
        return replace(task, value=error)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set the calling thread's intra-op thread count to `count` inside the block.

    On its first query a thread adopts the last count that any thread has set, so query before setting.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On a GPU, run the block on a stream of its own, and wait for that stream at the end.

    The stream first waits for work on the default stream, such as copies of weights.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()
