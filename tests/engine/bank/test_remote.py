"""Banks at URLs: on a real S3 server on localhost, and in fsspec's memory."""

import sys
from pathlib import Path

import numpy as np
import pytest

from engine.bank.merge import merge
from engine.bank.reader import BankReader
from engine.bank.storage import open_storage
from engine.bank.verify import verify
from engine.errors import UserError
from tests.engine.bank import tiny


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return request.getfixturevalue("memory_url")
    return f"{request.getfixturevalue('s3')}/{request.node.originalname}"


def _filesystem(url: str):
    import fsspec

    return fsspec.core.url_to_fs(url, use_listings_cache=False)


def test_write_resume_read_verify(url: str, tmp_path: Path) -> None:
    tiny.write(url, range(2))
    with pytest.raises(UserError, match=f"{url}.* is not empty"):
        tiny.write(url)
    assert tiny.write(url, range(4), resume=True) == []
    assert verify(url) == []
    bank = BankReader.open(url, cache=tmp_path / "cache")
    for number in range(4):
        rows, images = tiny.shard(number)
        tiny.assert_same(bank.rows(number), rows)
        assert np.array_equal(bank.images(number, range(len(images))), images)
    assert bank.spans(1).path.is_relative_to(tmp_path / "cache")


def test_the_files_are_those_of_a_local_bank(url: str, tmp_path: Path) -> None:
    tiny.write(url)
    tiny.write(tmp_path)
    filesystem, path = _filesystem(url)
    local = {name: data for name, data in tiny.contents(tmp_path).items() if not name.startswith(".")}
    found = filesystem.find(path)
    inner = path.strip("/") + "/"
    assert {name.partition(inner)[2]: filesystem.cat_file(name) for name in found} == local


def test_the_marker_of_an_empty_s3_folder_is_no_file(s3: str) -> None:
    filesystem, _ = _filesystem(f"{s3}/marked")
    filesystem.call_s3("put_object", Bucket="bucket", Key="marked/")
    tiny.write(f"{s3}/marked")
    assert verify(f"{s3}/marked") == []


def test_what_others_write_is_seen(url: str) -> None:
    tiny.write(url, [0])
    storage = open_storage(url)
    before = storage.names()
    filesystem, path = _filesystem(url)
    other = type(filesystem)(skip_instance_cache=True)
    other.pipe_file(f"{path}/new", b"12")
    assert storage.names() == sorted([*before, "new"])
    other.pipe_file(f"{path}/new", b"12345678")
    assert storage.read("new") == b"12345678"


def test_a_tar_is_downloaded_once_and_a_damaged_copy_again(url: str, tmp_path: Path) -> None:
    tiny.write(url, [0])
    copy = BankReader.open(url, cache=tmp_path).spans(0).path
    whole = copy.read_bytes()
    filesystem, path = _filesystem(url)
    filesystem.rm_file(f"{path}/00000.tar")
    assert BankReader.open(url, cache=tmp_path).spans(0).path == copy
    copy.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"shard 00000: 00000\.tar is missing"):
        BankReader.open(url, cache=tmp_path).spans(0)
    filesystem.pipe_file(f"{path}/00000.tar", whole)
    assert BankReader.open(url, cache=tmp_path).spans(0).path == copy
    assert copy.read_bytes() == whole


def test_damage_is_named_and_made_again(url: str, tmp_path: Path) -> None:
    tiny.write(url)
    filesystem, path = _filesystem(url)
    whole = filesystem.cat_file(f"{path}/00001.tar")
    filesystem.pipe_file(f"{path}/00001.tar", whole[:700] + b"?" + whole[701:])
    filesystem.rm_file(f"{path}/rows/00002.parquet")
    filesystem.pipe_file(f"{path}/00008.tar", b"half")
    assert [problem.file for problem in verify(url)] == ["00001.tar", "rows/00002.parquet", "00008.tar"]
    with pytest.raises(UserError, match=rf"shard 00001: 00001\.tar was altered.*verify {url}"):
        BankReader.open(url, cache=tmp_path).spans(1)
    assert list(tmp_path.rglob("*.tar")) == []
    said = tiny.write(url, resume=True)
    assert [line.split("shard ")[1][:5] for line in said] == ["00001", "00002"]
    assert verify(url) == []


def test_merge_from_here_to_there_and_back(url: str, tmp_path: Path) -> None:
    tiny.write(tmp_path / "one", [0])
    tiny.write(f"{url}/two", [1])
    merge([str(tmp_path / "one"), f"{url}/two"], f"{url}/out", resume=False)
    merge([f"{url}/out"], str(tmp_path / "back"), resume=False)
    assert verify(f"{url}/out") == verify(str(tmp_path / "back")) == []
    bank = BankReader.open(str(tmp_path / "back"))
    tiny.assert_same(bank.rows(1), tiny.shard(1)[0])


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_a_line_that_names_the_file() -> None:
    with pytest.raises(OSError, match="s3://no-such-bucket/bank/manifest.json"):
        tiny.write("s3://no-such-bucket/bank")


def test_a_server_that_does_not_answer_is_a_line(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    tiny.write(f"{s3}/lost", [0])

    def fail(*_: object) -> None:
        raise RuntimeError("connection reset")

    monkeypatch.setattr(open_storage(s3)._filesystem, "pipe_file", fail)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="RuntimeError: connection reset: 's3://bucket/lost/manifest.json'"):
        tiny.write(f"{s3}/lost", range(2), resume=True)
    monkeypatch.undo()
    assert verify(f"{s3}/lost") == []


def test_s3_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(UserError, match=r"s3://bucket/bank: .*s3fs.*dda-engine\[s3\]"):
        tiny.write("s3://bucket/bank")
