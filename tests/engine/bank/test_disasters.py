"""After kill -9, a full disk or a clock change no committed shard is lost, and resume gives the same bank."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.bank.reader import BankReader
from engine.bank.verify import verify
from tests.engine.bank import tiny

KILLS = 12
SHARDS = range(25)


def _forked_write(folder: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            tiny.write(folder, SHARDS, resume=True)
        finally:
            os._exit(0)
    return child


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_killed_at_any_moment_and_resumed_the_bank_is_the_undisturbed_one(tmp_path: Path) -> None:
    begun = time.perf_counter()
    tiny.write(tmp_path / "whole", SHARDS)
    seconds = time.perf_counter() - begun
    rng = random.Random(0)
    bank, committed, interrupted = tmp_path / "bank", set(), 0
    for _ in range(KILLS):
        child = _forked_write(bank)
        time.sleep(rng.uniform(0, seconds / 4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (bank / "manifest.json").exists():
            reader = BankReader.open(str(bank))
            now = {number for number in reader.numbers if len(reader.spans(number))}
            assert committed <= now
            interrupted += len(now) < len(SHARDS)
            committed = now
    assert interrupted
    tiny.write(bank, SHARDS, resume=True)
    assert verify(str(bank)) == []
    assert tiny.contents(bank) == tiny.contents(tmp_path / "whole")


LIMITED = """
import resource, signal, sys
from engine.cli.main import main
from tests.engine.bank import tiny
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(lambda _: tiny.write(sys.argv[1], range(3), resume=True), []))
"""


def test_a_full_disk_ends_in_a_line_that_names_the_file(tmp_path: Path) -> None:
    tiny.write(tmp_path / "whole", image_size=(8, 8))
    tiny.write(tmp_path / "bank", [0])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "bank")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "bank" / "00001.tar") in done.stderr
    assert BankReader.open(str(tmp_path / "bank")).numbers == [0]
    assert verify(str(tmp_path / "bank")) == []
    tiny.write(tmp_path / "bank", resume=True)
    assert tiny.contents(tmp_path / "bank") == tiny.contents(tmp_path / "whole")


def test_a_clock_that_jumps_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path / "whole")
    tiny.write(tmp_path / "bank", [0, 1])
    for path in (tmp_path / "bank").iterdir():
        os.utime(path, (4e9, 4e9))
    monkeypatch.setattr(time, "time", lambda: -1e9)
    monkeypatch.setattr(time, "time_ns", lambda: -(10**18))
    assert tiny.write(tmp_path / "bank", resume=True) == []
    assert verify(str(tmp_path / "bank")) == []
    assert tiny.contents(tmp_path / "bank") == tiny.contents(tmp_path / "whole")
