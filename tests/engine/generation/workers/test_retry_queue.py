"""The order of shards, and when failed shards are due again."""

import pytest

from engine.generation.workers import retry_queue
from engine.generation.workers.retry_queue import ShardQueue


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(retry_queue.time, "monotonic", lambda: now[0])
    return now


def test_lowest_numbers_first() -> None:
    shards = ShardQueue([5, 1, 3], retries=0)
    assert [shards.take() for _ in range(3)] == [1, 3, 5]
    assert shards.pause == float("inf")


def test_a_shard_that_failed_waits_twice_as_long_each_time(clock: list[float]) -> None:
    shards = ShardQueue([7], retries=9)
    pauses = []
    for _ in range(9):
        assert shards.take() == 7
        assert shards.failed(7)
        pauses.append(shards.pause)
        clock[0] += shards.pause
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_others_go_before_one_that_waits(clock: list[float]) -> None:
    shards = ShardQueue([1, 2], retries=1)
    assert shards.take() == 1
    assert shards.failed(1)
    assert (shards.pause, shards.take()) == (0, 2)
    assert (len(shards), shards.pause) == (1, 1)
    clock[0] += 1
    assert (shards.pause, shards.take()) == (0, 1)


def test_a_shard_is_given_up_after_its_retries() -> None:
    shards = ShardQueue([1], retries=2)
    assert [shards.failed(1) for _ in range(3)] == [True, True, False]
    assert not ShardQueue([1], retries=0).failed(1)
