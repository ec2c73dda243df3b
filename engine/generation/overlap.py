"""Which stages run side by side, on how many CPU threads, and the threads that run them."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, Generic, Literal, TypeVar

import torch

from engine.compute import ComputeConfig
from engine.recipe import Recipe

Item = TypeVar("Item")
Stage = Callable[[Any], Any]


@dataclass(frozen=True)
class _Task(Generic[Item]):
    item: Item
    value: Any
    """What the stages so far made of it; the Exception that one raised."""


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None
    """What ended the pipeline, where that was no lack of items."""


def pipelined(
    items: Iterator[Item],
    stages: Sequence[Stage],
    *,
    around: Callable[[], AbstractContextManager[None]],
    stopping: threading.Event,
) -> Generator[tuple[Item, Any], None, None]:
    """(item, what the stages, one after the other, made of it), in the order of `items`, which may block.

    An Exception of a stage takes the place of its result and spares the item the later stages. At most
    len(stages) + 1 items are on their way, those that wait for a stage and the one the caller has included.
    Each thread works inside an `around()`. Raises what `items` or `around` raises, after the items before it.

    Closed early, it sets `stopping`, for stages to look at, and waits for the stages at work. It does not
    wait for `items`: the thread that asks it ends as soon as it answers.
    """
    pipeline = _Pipeline(items, stages, around, stopping)
    try:
        yield from pipeline.results()
    finally:
        pipeline.close()


class _Pipeline(Generic[Item]):
    def __init__(
        self,
        items: Iterator[Item],
        stages: Sequence[Stage],
        around: Callable[[], AbstractContextManager[None]],
        stopping: threading.Event,
    ) -> None:
        self._around, self._stopping = around, stopping
        self._room = threading.Semaphore(len(stages) + 1)
        self._queues: list[SimpleQueue[_Task[Item] | _End]] = [SimpleQueue() for _ in range(len(stages) + 1)]
        self._workers = [
            threading.Thread(target=self._work, args=(stage, place), name=f"stage-{place}", daemon=True)
            for place, stage in enumerate(stages)
        ]
        asker = threading.Thread(target=self._ask, args=(items,), name="stage-items", daemon=True)
        for thread in (*self._workers, asker):
            thread.start()

    def results(self) -> Iterator[tuple[Item, Any]]:
        while not isinstance(task := self._queues[-1].get(), _End):
            yield task.item, task.value
            del task  # nothing is held while the next one is waited for
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

    def _ask(self, items: Iterator[Item]) -> None:
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

    def _work(self, stage: Stage, place: int) -> None:
        inbox, outbox = self._queues[place : place + 2]
        try:
            with self._around():
                while self._pass_on(stage, inbox, outbox):
                    pass
        except BaseException as error:
            outbox.put(_End(error))

    def _pass_on(
        self,
        stage: Stage,
        inbox: "SimpleQueue[_Task[Item] | _End]",
        outbox: "SimpleQueue[_Task[Item] | _End]",
    ) -> bool:
        """One item, of which the thread holds nothing afterwards; False at the end."""
        task = inbox.get()
        if isinstance(task, _End):
            outbox.put(task)
            return False
        skipped = isinstance(task.value, Exception) or self._stopping.is_set()
        outbox.put(task if skipped else _advanced(stage, task))
        return True


def _advanced(stage: Stage, task: _Task[Item]) -> _Task[Item]:
    """No frame in the traceback of an exception may refer to the result: that cycle would hold images."""
    try:
        return replace(task, value=stage(task.value))
    except Exception as error:
        return replace(task, value=error)


Step = Literal["synthesize", "augment", "filter"]
STEPS: tuple[Step, ...] = ("synthesize", "augment", "filter")


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Steps that run one after the other, beside those of the other lanes."""

    steps: tuple[Step, ...]
    threads: int


def one_lane(compute: ComputeConfig) -> tuple[Lane, ...]:
    """All steps one after the other, each on all threads of a settled configuration."""
    assert compute.threads is not None
    return (Lane(steps=STEPS, threads=compute.threads),)


def lanes(recipe: Recipe) -> tuple[Lane, ...]:
    """Those of a settled recipe whose shards are made independently.

    On a CPU their threads sum to `compute.threads`: the filter, which does least, gets one, or shares that of
    augment where there are two in all; the rest is halved. On a GPU threads only launch; each lane has all.
    """
    compute = recipe.compute
    if not compute.overlap or recipe.augment.method == "none":
        return one_lane(compute)
    threads = compute.threads
    assert threads is not None
    if compute.device == "cuda":
        return tuple(Lane(steps=(step,), threads=threads) for step in STEPS)
    if threads == 2:
        return Lane(steps=("synthesize",), threads=1), Lane(steps=("augment", "filter"), threads=1)
    for_synthesis = (threads - 1) // 2
    shares = for_synthesis, threads - 1 - for_synthesis, 1
    return tuple(Lane(steps=(step,), threads=share) for step, share in zip(STEPS, shares, strict=True))


def threads_of(lanes: tuple[Lane, ...], step: Step) -> int:
    """The CPU threads that `step` runs on."""
    return next(lane.threads for lane in lanes if step in lane.steps)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch computes on `count` threads what the calling thread asks of it inside; other threads keep theirs.

    A thread takes the last count that any thread has set when it is first asked for its own, so it is asked
    here before it is set.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On a GPU, what the calling thread launches inside runs on a stream of its own, and is done at the end.

    It waits for what the default stream has been given so far, such as the loading of weights.
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
