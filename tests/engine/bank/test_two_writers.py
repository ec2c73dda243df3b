"""If two processes write one bank, one fails with one line, and no committed shard is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.bank.reader import BankReader
from engine.bank.verify import verify
from engine.bank.writer import BankWriter, write_shard
from engine.errors import UserError
from tests.engine.bank import tiny

SECOND = """
import sys
from engine.cli.main import main
from tests.engine.bank import tiny
sys.exit(main(lambda _: tiny.write(sys.argv[1], resume=True), []))
"""


def _second(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SECOND, str(folder)], capture_output=True, text=True, check=False
    )


def test_a_second_local_writer_ends_at_once(tmp_path: Path) -> None:
    with BankWriter.open(str(tmp_path), tiny.header(), resume=False) as first:
        first.commit(0, *tiny.shard(0))
        done = _second(tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"{tmp_path} is being written by another process" in done.stderr
        first.commit(1, *tiny.shard(1))
    assert _second(tmp_path).returncode == 0
    assert BankReader.open(str(tmp_path)).numbers == [0, 1, 2]
    assert verify(str(tmp_path)) == []


def test_who_opens_a_remote_bank_takes_it_over(memory_url: str) -> None:
    first = BankWriter.open(memory_url, tiny.header(), resume=False)
    first.commit(0, *tiny.shard(0))
    second = BankWriter.open(memory_url, tiny.header(), resume=True)
    with pytest.raises(UserError, match=f"{memory_url} was taken over by another writer"):
        first.commit(1, *tiny.shard(1))
    with pytest.raises(UserError, match="taken over"):
        first.close()
    second.commit(2, *tiny.shard(2))
    second.close()
    assert BankReader.open(memory_url).numbers == [0, 2]
    assert verify(memory_url) == []


def test_a_writer_that_lost_the_bank_enters_no_shard_of_its_workers(memory_url: str) -> None:
    first = BankWriter.open(memory_url, tiny.header(), resume=False)
    second = BankWriter.open(memory_url, tiny.header(), resume=True)
    second.commit(0, *tiny.shard(0))
    entry = write_shard(memory_url, 1, *tiny.shard(1), tiny.header())
    with pytest.raises(UserError, match=f"{memory_url} was taken over by another writer"):
        first.commit_entries({1: entry})
    second.close()
    assert BankReader.open(memory_url).numbers == [0]


def test_two_remote_writers_that_begin_together(memory_url: str) -> None:
    """Both see an empty folder, but the second finds the manifest of the first."""
    from engine.bank.storage import open_storage

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(open_storage(memory_url)), "names", lambda _: [])
        first = BankWriter.open(memory_url, tiny.header(), resume=False)
        with pytest.raises(UserError, match="is not empty"):
            BankWriter.open(memory_url, tiny.header(), resume=False)
    first.commit(0, *tiny.shard(0))
    first.close()
    assert verify(memory_url) == []


def test_a_closed_remote_bank_has_no_trace_of_its_writer(memory_url: str, tmp_path: Path) -> None:
    import fsspec

    tiny.write(memory_url)
    tiny.write(tmp_path)
    remote = fsspec.filesystem("memory")
    path = memory_url.removeprefix("memory:/")
    local = {name: data for name, data in tiny.contents(tmp_path).items() if not name.startswith(".")}
    assert {name: remote.cat_file(f"{path}/{name}") for name in local} == local
