"""Timing: alternating medians, cold caches outside the measured time, cuDNN flags of each side."""

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from bench import timing
from bench.calls import as_published, replayed
from bench.timing import milliseconds


def test_medians_in_turns() -> None:
    calls = {"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.01)}
    ms = milliseconds(calls, torch.device("cpu"), seconds=0.1)
    assert 1 <= ms["short"] < ms["long"]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the work of a fake GPU in order; each call takes a minute, and so does overwriting its L2."""
    given: list[str] = []

    class Event:
        def __init__(self, **_: object) -> None:
            pass

        def record(self) -> None:
            given.append("record")

        def elapsed_time(self, _: object) -> float:
            return 60_000.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: given.append("wait"))
    monkeypatch.setattr(timing, "_evictor", lambda _: lambda: given.append("evict"))
    return given


@pytest.mark.parametrize(
    ("cold", "run"), [(True, ["evict", "record", "call", "record", "wait"]), (False, [])]
)
def test_the_cache_is_overwritten_before_each_run_and_not_timed(
    cold: bool, run: list[str], events: list[str]
) -> None:
    run = run or ["record", "call", "record", "wait"]
    milliseconds({"one": lambda: events.append("call")}, torch.device("cuda"), cold=cold)
    assert events[-len(run) :] == run
    assert events.count("evict") == (3 + 2 + 5 if cold else 0), "to time it, to warm up, in five rounds"


def test_the_overwritten_memory_is_larger_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(L2_cache_size=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    evict = timing._evictor.__wrapped__(torch.device("cpu"))
    assert evict().nbytes == 2000


@pytest.mark.gpu
def test_a_cold_call_reads_memory() -> None:
    x = torch.ones(1 << 20, device="cuda")
    calls = {"sum": x.sum}
    assert timing._evictor(x.device)().nbytes >= 2 * x.nbytes
    assert milliseconds(calls, x.device, seconds=0.1, cold=True)["sum"] > 0


@pytest.mark.gpu
def test_a_replay_does_what_the_call_does() -> None:
    x, y = torch.zeros(1000, device="cuda"), torch.empty(1000, device="cuda")
    replay = replayed(lambda: torch.add(x, 1, out=y))
    x.fill_(2)
    replay()
    assert (y == 3).all()


def cudnn_flags() -> tuple[bool, bool]:
    return torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark


def _fail() -> None:
    raise ValueError("no such algorithm")


@pytest.mark.parametrize("call", [cudnn_flags, _fail])
def test_a_baseline_runs_under_torchs_default_flags(
    call: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    if call is _fail:
        with pytest.raises(ValueError, match="no such algorithm"):
            as_published(call)()
    else:
        assert as_published(call)() == (False, False)
    assert cudnn_flags() == (True, True)
