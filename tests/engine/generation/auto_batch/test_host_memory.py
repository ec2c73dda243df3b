"""The host's memory: what is available, and what the next size will need."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.generation.auto_batch.measure import available_bytes

ROOT = Path(__file__).parents[4]
MEMINFO = "MemTotal:       24000000 kB\nMemFree: 9 kB\nMemAvailable:    1000000 kB\n"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, 1_024_000_000),
        ("max", 1_024_000_000),
        ("500000000", 400_000_000),
        ("9000000000", 1_024_000_000),
    ],
)
def test_available_memory_respects_system_and_container(
    limit: str | None, expected: int, tmp_path: Path
) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("100000000\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == expected


def test_this_machine_reports_available_memory() -> None:
    assert available_bytes() > 1 << 20


def fits(earlier: int, now: int) -> list[bool]:
    """Return whether 16 and 32 fit in 300 MiB after 8 took `now` MiB, and earlier work `earlier` MiB.

    Runs in a separate process, which cannot reuse memory that other tests have freed.
    """
    code = f"""
import torch
from engine.generation.auto_batch.measure import HostMemory
torch.ones({earlier} << 18).sum()
memory = HostMemory(available=lambda: 300 << 20)
torch.ones({now} << 18).sum()
print(int(memory.fits(8, 16)), int(memory.fits(8, 32)))
"""
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return [word == "1" for word in finished.stdout.split()]


def test_the_next_size_must_leave_half_of_the_available_memory() -> None:
    """8 images took 64 MiB: 128 MiB for 16 fit into half of 300 MiB, but 256 MiB for 32 do not."""
    assert fits(earlier=1, now=64) == [True, False]


def test_an_earlier_peak_does_not_count() -> None:
    assert fits(earlier=256, now=16) == [True, True]
