"""GenerationStats: how each event is counted."""

import threading
import time

import pytest

from engine.generation.messages import Event, LoadFailed, Logged, Ready
from engine.generation.monitor.progress import GenerationStats
from tests.engine.generation.monitor.example_stats import done


def test_a_worker_that_could_not_load_is_not_alive_and_its_reason_counts() -> None:
    stats = GenerationStats(target=2, found=0)
    stats.take(Event("a", LoadFailed("no such file")))
    assert not stats.workers["a"].alive
    assert stats.errors == {"no such file": 1}
    assert stats.workers_lost == 0


def test_the_rate_of_a_worker_counts_from_when_it_had_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stats = GenerationStats(target=2, found=0, started=now)
    stats.take(Event("a", Logged(logger="engine", level=20, text="loading")))
    now = 200.0
    stats.take(Event("a", Ready("here", 100.0)))
    now = 210.0
    stats.take(Event("a", done(0, rows=50)))
    assert stats.workers["a"].rate(now) == 5.0
    assert stats.rate == 50 / 110


def test_committed_shards_are_those_found_and_made() -> None:
    stats = GenerationStats(target=9, found=4)
    stats.take(Event("a", done(4)))
    stats.failed[5] = "no"
    assert (stats.committed, stats.left) == (5, 3)


def test_a_copy_may_be_walked_through_while_events_arrive() -> None:
    stats = GenerationStats(target=10**6, found=0)
    stop = threading.Event()

    def take() -> None:
        for number in range(10**6):
            if stop.is_set():
                return
            stats.take(Event(f"worker {number}", LoadFailed(f"reason {number}")))

    thread = threading.Thread(target=take)
    thread.start()
    try:
        for _ in range(200):
            copy = stats.copy()
            assert sum(1 for _ in copy.workers.values()) == len(copy.workers)
            assert sum(copy.errors.values()) == len(copy.errors)
    finally:
        stop.set()
        thread.join()
