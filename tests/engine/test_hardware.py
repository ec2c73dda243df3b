"""Torch's threads leave cores to other processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from engine import hardware
from engine.config.compute import ComputeConfig
from engine.hardware import CoreTimes, SharedCores, available_cores

COMPUTE = ComputeConfig(
    device="cpu", precision="fp32", runtime="torch", runtime_precision="fp32", overlap=False
)
BUSY = "import time; end = time.time() + 60\nwhile time.time() < end: pass"


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def strangers() -> Iterator[None]:
    """Keep all cores busy with processes that are no descendants of this one."""
    starter = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.DEVNULL).pid)
"""
    command = [sys.executable, "-c", starter, BUSY]
    found = [int(subprocess.check_output(command, timeout=60)) for _ in range(available_cores())]
    yield
    for process in found:
        os.kill(process, signal.SIGKILL)


def spin(seconds: float) -> None:
    """Compute for so many seconds of CPU time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.usefixtures("_threads", "strangers")
def test_fewer_threads_run_while_other_processes_keep_the_cores_busy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hardware, "MEASURED_SECONDS", 0.5)
    compute = replace(COMPUTE, threads=available_cores() + 1)
    cores, fixed = SharedCores(compute), SharedCores(replace(compute, share_cores=False))
    torch.set_num_threads(available_cores() + 1)
    for _ in range(2):
        spin(0.6)
        fixed.adjust()
        assert torch.get_num_threads() == available_cores() + 1
        cores.adjust()
        assert torch.get_num_threads() <= max(1, available_cores() / 2 + 0.5)
        torch.set_num_threads(available_cores() + 1)
    told = [record.message for record in caplog.records if "other processes keep" in record.message]
    assert len(told) == 1, "once"


@pytest.mark.usefixtures("_threads")
def test_the_threads_come_back() -> None:
    """As the others end; the measurement is replaced, as other tests may run at the same time."""
    cores = SharedCores(replace(COMPUTE, threads=2))
    for left in (1, 2, 1):
        cores._left = left
        cores.adjust()
        assert torch.get_num_threads() == left


def test_descendants_are_not_others() -> None:
    """Neither while they run nor after they have ended."""
    before = CoreTimes.now()
    assert before is not None
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}], timeout=2)"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as child:
        time.sleep(1.5)
        during = CoreTimes.now()
        child.wait()
    after = CoreTimes.now()
    assert during is not None
    assert after is not None
    assert during.own - before.own > 0.3
    assert after.own >= during.own


def test_others_are_what_this_process_did_not_use() -> None:
    before = CoreTimes(at=10.0, everyone=100.0, own=50.0)
    assert CoreTimes(at=12.0, everyone=104.0, own=51.0).others_since(before) == 1.5
    assert CoreTimes(at=12.0, everyone=101.0, own=51.1).others_since(before) == 0.0
