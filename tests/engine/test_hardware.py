"""Torch's threads leave cores to other processes, and come back."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from engine import hardware
from engine.config.compute import ComputeConfig
from engine.hardware import CoreTimes, SharedCores, available_cores, threads_left

COMPUTE = ComputeConfig(
    device="cpu", precision="fp32", runtime="torch", runtime_precision="fp32", overlap=False, threads=2
)
BUSY = "import time; end = time.time() + 60\nwhile time.time() < end: pass"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def strangers() -> Iterator[int]:
    """Keep two cores, the only ones of this process, busy with others that are no descendants; return two."""
    allowed = os.sched_getaffinity(0)
    starter = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.DEVNULL).pid)
"""
    found: list[int] = []
    tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    two = set(sorted(allowed)[:2])
    for task in tasks:
        os.sched_setaffinity(task, two)
    try:
        for _ in two:
            found.append(int(subprocess.check_output([sys.executable, "-c", starter, BUSY], timeout=60)))
        yield len(two)
    finally:
        for process in found:
            os.kill(process, signal.SIGKILL)
        for task in tasks:
            os.sched_setaffinity(task, allowed)


def spin(seconds: float) -> None:
    """Use up `seconds` of CPU time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_one_thread_runs_next_to_busy_processes(
    strangers: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hardware, "MEASURED_SECONDS", 0.5)
    torch.set_num_threads(2)
    fixed = SharedCores(replace(COMPUTE, share_cores=False))
    with SharedCores(COMPUTE) as cores, caplog.at_level(logging.WARNING):
        for _ in range(2):
            spin(0.6)
            fixed.adjust()
            cores.adjust()
            assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    (told,) = [record.message for record in caplog.records]
    assert f"of {strangers} cores busy" in told


def reading(at: float, busy: float, own: float) -> CoreTimes:
    return CoreTimes(at=at, busy={0: busy, 1: 0.0}, own=own)


def test_the_threads_come_back_when_the_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter(
        [
            reading(0, 0, 0),
            reading(2, 3.0, 1.5),
            reading(4, 7.0, 3.5),
            reading(6, 9.0, 5.5),
            reading(8, 13, 7.5),
        ]
    )
    monkeypatch.setattr(CoreTimes, "now", lambda: next(readings))
    monkeypatch.setattr(hardware, "MEASURED_SECONDS", -1e9)
    found = []
    with SharedCores(COMPUTE) as cores:
        for _ in range(4):
            cores.adjust()
            found.append(torch.get_num_threads())
    assert found == [1, 1, 2, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("others", "cores", "wanted", "left"),
    [
        (0.0, 2, 4, 4),
        (0.4, 2, 2, 2),
        (0.7, 2, 2, 1),
        (2.0, 2, 2, 1),
        (1.0, 16, 16, 15),
        (15.0, 16, 16, 8),
        (3.0, 16, 4, 4),
        (1.0, 1, 2, 1),
    ],
)
def test_threads_left(others: float, cores: int, wanted: int, left: int) -> None:
    assert threads_left(others, cores=cores, wanted=wanted) == left


@pytest.mark.parametrize(
    ("compute", "ranks"),
    [
        (replace(COMPUTE, device="cuda"), 1),
        (replace(COMPUTE, compile=True), 1),
        (replace(COMPUTE, threads=1), 1),
        (replace(COMPUTE, share_cores=False), 1),
        (COMPUTE, 2),
    ],
    ids=["GPU", "inductor", "one thread", "off", "ranks"],
)
def test_cases_that_are_not_measured(
    compute: ComputeConfig, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CoreTimes, "now", lambda: pytest.fail("measured"))
    torch.set_num_threads(2)
    SharedCores(compute, ranks=ranks).adjust()
    assert torch.get_num_threads() == 2


def test_what_counts_as_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither idle time, nor waiting for disks, nor guests, which are in user, nor niced processes."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    (tmp_path / "stat").write_text("cpu  9 9 9 9\ncpu0 1 2 4 8 16 32 64 128 0 0\nintr 7\n")
    for niceness, ticks in ((0, 1 + 4 + 32 + 64 + 128), (5, 1 + 2 + 4 + 32 + 64 + 128)):
        monkeypatch.setattr(os, "getpriority", lambda *_, niceness=niceness: niceness)
        assert hardware._busy_seconds() == pytest.approx([ticks / os.sysconf("SC_CLK_TCK")])


def test_other_systems_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "LINUX", False)
    torch.set_num_threads(2)
    SharedCores(COMPUTE).adjust()
    assert torch.get_num_threads() == 2


def test_others_are_what_this_process_did_not_use() -> None:
    before = reading(10.0, 100.0, 50.0)
    assert reading(12.0, 104.0, 51.0).others_since(before) == 1.5
    assert reading(12.0, 101.0, 51.1).others_since(before) == 0.0
    assert reading(12.0, 900.0, 51.0).others_since(before) == 2.0, "no more than there are cores"
    assert reading(12.0, 104.0, 20.0).others_since(before) == 0.0, "a descendant is missing"
    woken = CoreTimes(at=12.0, busy={0: 102.0, 1: 0.0, 2: 5000.0}, own=51.0)
    assert woken.others_since(before) == 0.5, "a core that was asleep before"


def test_descendants_are_not_others() -> None:
    """The time of a grandchild is this process's own."""
    before = CoreTimes.now()
    assert before is not None
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}], timeout=30)"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as child:
        during, deadline = before, time.monotonic() + 25
        while during.own - before.own < 0.5 and time.monotonic() < deadline:
            time.sleep(0.2)
            now = CoreTimes.now()
            assert now is not None
            during = now
        os.killpg(child.pid, signal.SIGKILL)
    assert during.own - before.own >= 0.5


def test_this_machine_has_counters_for_its_cores() -> None:
    now = CoreTimes.now()
    assert now is not None
    assert len(now.busy) == available_cores()
