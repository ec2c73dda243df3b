"""Overlapped stages: order, bounds, failures, and closing without leaks."""

import gc
import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from engine.generation.overlap import overlapped

SECONDS = 20.0


def start(
    items: Iterator[Any], *stages: Callable[[Any], Any], around: Any = nullcontext
) -> Generator[tuple[Any, Any], None, None]:
    return overlapped(items, stages, around=around, stopping=threading.Event())


def stage_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("stage-")]


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: not stage_threads())


@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    def sometimes_slow(value: int) -> int:
        time.sleep(0.003 * (value % 3))
        return value * 10

    found = list(start(iter(range(count)), sometimes_slow, lambda value: value + 1))
    assert found == [(item, item * 10 + 1) for item in range(count)]


def test_stages_work_at_the_same_time_on_consecutive_items() -> None:
    """A stage passes the barrier only while the other stages wait at it."""
    meeting = threading.Barrier(3)
    seen: dict[int, set[int]] = {}

    def stage(index: int) -> Callable[[int], int]:
        def meet(item: int) -> int:
            if index <= item < index + 8:
                round = item + (2 - index)  # earlier stages have later items
                if 2 <= round < 8:
                    meeting.wait(SECONDS)
                    seen.setdefault(round, set()).add(item)
            return item

        return meet

    assert len(list(start(iter(range(10)), stage(2), stage(1), stage(0)))) == 10
    assert seen == {round: {round - 2, round - 1, round} for round in range(2, 8)}


def test_no_more_are_on_their_way_than_stages_and_one() -> None:
    on_their_way, most = 0, 0
    lock = threading.Lock()

    def items() -> Iterator[int]:
        nonlocal on_their_way, most
        for item in range(20):
            with lock:
                on_their_way += 1
                most = max(most, on_their_way)
            yield item

    for _ in start(items(), lambda item: item, lambda item: item):
        time.sleep(0.01)
        with lock:
            on_their_way -= 1
    assert most == 3


def test_nothing_is_held_of_an_item_that_is_done() -> None:
    class Value:
        pass

    taken: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    pipeline = start(iter(taken.get, None), lambda _: Value(), lambda value: value)
    taken.put(0)
    _, value = next(pipeline)
    gone = weakref.ref(value)
    del value
    threading.Timer(0.2, taken.put, [None]).start()
    assert list(pipeline) == []
    assert gone() is None


def test_an_exception_is_the_result_of_its_item_and_spares_it_the_later_stages() -> None:
    later = []

    def fails_on_odd(item: int) -> int:
        if item % 2:
            raise ValueError(f"item {item}")
        return item

    found = list(start(iter(range(4)), fails_on_odd, lambda item: later.append(item) or item))
    assert [repr(value) for _, value in found] == ["0", "ValueError('item 1')", "2", "ValueError('item 3')"]
    assert later == [0, 2]


def test_an_exception_keeps_no_cycle_of_references() -> None:
    class Value:
        pass

    def fails(value: Value) -> None:
        raise ValueError(value.__class__)

    gc.collect()
    gc.disable()
    try:
        first = Value()
        gone = weakref.ref(first)
        assert all(isinstance(value, ValueError) for _, value in start(iter([first]), fails))
        del first
        wait_until(lambda: gone() is None)
    finally:
        gc.enable()


def test_results_are_given_while_the_items_block() -> None:
    """A coordinator may hand out an item only after the previous result."""
    given: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    pipeline = start(iter(given.get, None), lambda item: -item)
    for item in (1, 2):
        given.put(item)
        assert next(pipeline) == (item, -item)
    given.put(None)
    assert list(pipeline) == []


def test_closed_early_it_stops_the_stages_and_takes_no_further_item() -> None:
    stopping = threading.Event()
    taken, stopped = [], []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    def until_stopped(item: int) -> int:
        if item == 0:
            return item
        assert stopping.wait(SECONDS)
        stopped.append(item)
        raise RuntimeError("nobody reads this")

    pipeline = overlapped(items(), [until_stopped], around=nullcontext, stopping=stopping)
    assert next(pipeline) == (0, 0)
    wait_until(lambda: len(taken) == 2)
    pipeline.close()
    assert stopped == [1]
    assert not [thread for thread in stage_threads() if thread.name != "stage-items"]
    wait_until(lambda: not stage_threads())
    assert len(taken) <= 3


def test_closing_does_not_wait_for_items_that_block() -> None:
    given: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    worked = []
    pipeline = start(iter(given.get, None), lambda item: worked.append(item) or item)
    given.put(0)
    assert next(pipeline) == (0, 0)
    pipeline.close()
    given.put(1)  # lets the reading thread end
    wait_until(lambda: not stage_threads())
    assert worked == [0]


def test_what_the_items_raise_is_raised_after_the_items_before() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise EOFError("the coordinator is gone")

    pipeline = start(items(), lambda item: item)
    assert next(pipeline) == (0, 0)
    with pytest.raises(EOFError, match="the coordinator is gone"):
        next(pipeline)


def test_each_stage_works_inside_what_is_around() -> None:
    inside = threading.local()

    @contextmanager
    def around() -> Iterator[None]:
        inside.name = threading.current_thread().name
        yield

    def name(_: Any) -> str:
        assert inside.name == threading.current_thread().name
        return inside.name

    assert list(start(iter([0]), name, lambda before: (before, name(0)), around=around)) == [
        (0, ("stage-0", "stage-1"))
    ]


def test_what_is_around_may_fail() -> None:
    @contextmanager
    def around() -> Iterator[None]:
        raise OSError("no such device")
        yield

    with pytest.raises(OSError, match="no such device"):
        list(start(iter(range(5)), lambda item: item, lambda item: item, around=around))
