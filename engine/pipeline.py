"""Stages at work side by side, each in a thread of its own, on consecutive items."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

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
