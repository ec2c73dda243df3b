"""The file of a shard's views: its format, its hash, and what the bank's commands make of it."""

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.bank.merge import merge
from engine.bank.reader import BankReader
from engine.bank.verify import verify
from engine.bank.views import TeacherOutputs, ViewsError, ViewsOwner, pack, parse, read
from engine.bank.writer import BankWriter
from engine.config.views import StoredViews
from tests.engine.bank import tiny

OWNER = ViewsOwner(tar="a" * 64, teacher="b" * 64, views=StoredViews(count=4, mixup=0.5, seed=1))


def outputs(images: int = 6, *, pooled: bool = True) -> TeacherOutputs:
    rng = np.random.default_rng(0)
    logits, features = (rng.normal(size=(images, 4, width)).astype(np.float16) for width in (3, 5))
    return TeacherOutputs(logits, features if pooled else None)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("images", [0, 1, 6])
def test_what_is_packed_is_read(images: int, pooled: bool, tmp_path: Path) -> None:
    path, given = tmp_path / "views", outputs(images, pooled=pooled)
    path.write_bytes(pack(OWNER, given))
    found = read(path)
    assert found.owner == OWNER
    np.testing.assert_array_equal(found.outputs.logits, given.logits)
    assert (found.outputs.pooled is not None) == pooled
    if given.pooled is not None and found.outputs.pooled is not None:
        np.testing.assert_array_equal(found.outputs.pooled, given.pooled)


def test_the_bytes_are_a_function_of_the_contents() -> None:
    assert len({pack(OWNER, outputs()) for _ in range(20)}) == 1
    assert pack(replace(OWNER, teacher="c" * 64), outputs()) != pack(OWNER, outputs())


def test_a_file_of_an_earlier_version_is_read() -> None:
    """It names fewer settings, and its hash is over those."""
    data = pack(OWNER, outputs())
    begin = 8 + int.from_bytes(data[:8], "little")
    fields = json.loads(data[8:begin])
    facts = json.loads(fields["__metadata__"]["views"])
    del facts["sha256"], facts["views"]["teacher_flip"]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, values in sorted(outputs()._asdict().items()):
        digest.update(f"{name} {values.shape}".encode() + values.tobytes())
    fields["__metadata__"]["views"] = json.dumps(facts | {"sha256": digest.hexdigest()})
    earlier = json.dumps(fields).encode()
    found = parse(np.frombuffer(len(earlier).to_bytes(8, "little") + earlier + data[begin:], np.uint8))
    assert found.owner == OWNER
    np.testing.assert_array_equal(found.outputs.logits, outputs().logits)


def test_any_damage_is_noticed(tmp_path: Path) -> None:
    data, draw, path = pack(OWNER, outputs()), random.Random(0), tmp_path / "views"
    for _ in range(300):
        bad = bytearray(data)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        with pytest.raises(ViewsError):
            parse(np.frombuffer(bytes(bad), np.uint8))
    for length in [0, 1, 7, 8, 9, *(draw.randrange(len(data)) for _ in range(50))]:
        path.write_bytes(data[:length])
        with pytest.raises(ViewsError):
            read(path)


def bank(url: Path, shards: int, *, first: int = 0) -> Path:
    tiny.write(url, range(first, first + shards))
    return url


def with_views(url: Path, number: int = 0) -> ViewsOwner:
    reader = BankReader.open(str(url))
    owner = replace(OWNER, tar=reader.tar_sha256(number))
    reader.write_views(number, pack(owner, outputs(reader.shards[number].images)))
    return owner


def test_views_are_part_of_the_bank(tmp_path: Path) -> None:
    url = bank(tmp_path / "bank", 2)
    assert BankReader.open(str(url)).views(0) is None
    owner = with_views(url)
    found = BankReader.open(str(url)).views(0)
    assert found is not None
    assert found.owner == owner
    assert verify(str(url)) == []


def test_verify_names_damaged_and_foreign_views(tmp_path: Path) -> None:
    url = bank(tmp_path / "bank", 3)
    for number in range(3):
        with_views(url, number)
    files = [url / f"views/{number:05d}.safetensors" for number in range(3)]
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].write_bytes(files[2].read_bytes())
    (url / "views" / "00007.safetensors").write_bytes(files[2].read_bytes())
    assert [problem.file for problem in verify(str(url))] == [
        "views/00000.safetensors",
        "views/00001.safetensors",
        "views/00007.safetensors",
    ]
    for number in (0, 1):
        with pytest.raises(ViewsError):
            BankReader.open(str(url)).views(number)


def test_a_merged_bank_keeps_the_views(tmp_path: Path) -> None:
    urls = [bank(tmp_path / name, 2, first=2 * place) for place, name in enumerate("ab")]
    with_views(urls[1], 3)
    merge([str(url) for url in urls], str(tmp_path / "both"), resume=False)
    merged = BankReader.open(str(tmp_path / "both"))
    assert [merged.views(number) is not None for number in range(4)] == [False, False, False, True]
    assert verify(str(tmp_path / "both")) == []


def test_resume_removes_the_views_of_shards_that_are_gone(tmp_path: Path) -> None:
    url = bank(tmp_path / "bank", 2)
    with_views(url, 0)
    with_views(url, 1)
    with BankWriter.open(str(url), BankReader.open(str(url)).header, resume=True) as writer:
        writer.keep_below(1)
    assert [path.name for path in (url / "views").iterdir()] == ["00000.safetensors"]
