"""A merged bank contains each shard of its sources once, byte for byte."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.bank.manifest import Origin, shard_files
from engine.bank.merge import merge
from engine.bank.reader import BankReader
from engine.bank.verify import verify
from engine.bank.writer import BankWriter
from engine.errors import UserError
from tests.engine.bank import tiny


def _sources(folder: Path) -> list[str]:
    """Write shards 0 to 2 of seed 0, and 2 and 7 of seed 1; shard 2 is the same in both."""
    tiny.write(folder / "one", range(3))
    tiny.write(folder / "two", [2, 7], recipe={"seed": 1}, settings_sha256="7" * 64)
    return [str(folder / "one"), str(folder / "two")]


def test_shards_are_copied_verbatim_and_once(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    manifest = merge(_sources(tmp_path), out, resume=False)
    assert verify(out) == []
    assert list(manifest.shards) == [0, 1, 2, 3]
    assert [entry.origin for entry in manifest.shards.values()] == [
        *(Origin(settings_sha256="5" * 64, seed=0, number=number) for number in range(3)),
        Origin(settings_sha256="7" * 64, seed=1, number=7),
    ]
    for copy, original in zip(shard_files(3), shard_files(7), strict=True):
        assert (tmp_path / "out" / copy).read_bytes() == (tmp_path / "two" / original).read_bytes()
    bank = BankReader.open(out)
    tiny.assert_same(bank.rows(3), tiny.shard(7)[0])
    assert np.array_equal(bank.images(3, range(10)), tiny.shard(7)[1])


def test_shards_without_images_are_identified_by_their_rows(tmp_path: Path) -> None:
    """All of their tars are equal."""
    for folder, numbers in (("one", [0, 1, 2]), ("two", [2, 3])):
        with BankWriter.open(str(tmp_path / folder), tiny.header(), resume=False) as writer:
            for number in numbers:
                rows, images = tiny.shard(number)
                writer.commit(number, replace(rows, kept=np.zeros(len(rows), bool)), images[:0])
    out = str(tmp_path / "out")
    merged = merge([str(tmp_path / "one"), str(tmp_path / "two")], out, resume=False)
    assert [(it.rows, it.images) for it in merged.shards.values()] == [(12, 0)] * 4
    bank = BankReader.open(out)
    for number in range(4):
        np.testing.assert_array_equal(bank.rows(number).keys, tiny.shard(number)[0].keys)


def test_a_merged_bank_can_be_merged_and_keeps_the_first_origins(tmp_path: Path) -> None:
    sources = _sources(tmp_path)
    merge(sources[:1], str(tmp_path / "a"), resume=False)
    again = merge([str(tmp_path / "a"), sources[1]], str(tmp_path / "b"), resume=False)
    direct = merge(sources, str(tmp_path / "c"), resume=False)
    assert again.shards == direct.shards


@pytest.mark.parametrize(
    ("name", "value"),
    [("class_names", ("a", "b", "c")), ("image_size", (8, 9)), ("codec", "png"), ("channels", 1)],
)
def test_banks_that_do_not_go_together_are_named(name: str, value: object, tmp_path: Path) -> None:
    tiny.write(tmp_path / "one", [0])
    tiny.write(tmp_path / "two", [1], **{name: value})
    with pytest.raises(UserError, match=rf"two differs from {tmp_path}/one in {name}"):
        merge([str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path / "out"), resume=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["00001.tar", "rows/00001.parquet", "stats/00001.json"])
def test_a_damaged_source_is_named_and_the_merge_continues(name: str, tmp_path: Path) -> None:
    sources = _sources(tmp_path)
    whole = (tmp_path / "one" / name).read_bytes()
    (tmp_path / "one" / name).write_bytes(whole[:-1])
    out = tmp_path / "out"
    with pytest.raises(UserError, match=rf"one: shard 00001: {name} has .*--resume"):
        merge(sources, str(out), resume=False)
    assert verify(str(out)) == []
    assert BankReader.open(str(out)).numbers == [0]
    (tmp_path / "one" / name).write_bytes(whole)
    with pytest.raises(UserError, match="not empty"):
        merge(sources, str(out), resume=False)
    merge(sources, str(out), resume=True)
    merge(sources, str(tmp_path / "undisturbed"), resume=False)
    assert tiny.contents(out) == tiny.contents(tmp_path / "undisturbed")


def test_another_merge_into_the_same_bank_is_refused(tmp_path: Path) -> None:
    sources = _sources(tmp_path)
    merge(sources[:1], str(tmp_path / "out"), resume=False)
    with pytest.raises(UserError, match=r"made with other settings: merged\."):
        merge(sources, str(tmp_path / "out"), resume=True)


def test_a_hostile_tar_is_refused_though_its_hash_is_right(tmp_path: Path) -> None:
    from engine.bank.fingerprint import Fingerprint
    from engine.bank.storage import open_storage
    from engine.bank.writer import ManifestFile

    tiny.write(tmp_path / "one", [0])
    tar = tmp_path / "one" / "00000.tar"
    tar.write_bytes(b"/" + tar.read_bytes()[1:])
    manifest_file = ManifestFile(open_storage(str(tmp_path / "one")))
    manifest = manifest_file.read()
    files = {**manifest.shards[0].files, tar.name: Fingerprint.of_file(tar)}
    manifest_file.replace(replace(manifest, shards={0: replace(manifest.shards[0], files=files)}))
    with pytest.raises(UserError, match=r"shard 00000: member '/.*its name is not plain"):
        merge([str(tmp_path / "one")], str(tmp_path / "out"), resume=False)


def test_empty_shards_and_banks(tmp_path: Path) -> None:
    with BankWriter.open(str(tmp_path / "one"), tiny.header(), resume=False) as writer:
        writer.commit(0, *tiny.shard(0, length=0))
    tiny.write(tmp_path / "two", [])
    merged = merge([str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path / "out"), resume=False)
    assert (len(merged.shards), merged.images) == (1, 0)
    assert verify(str(tmp_path / "out")) == []
    assert BankReader.open(str(tmp_path / "out")).images(0, []).shape == (0, 8, 8, 3)
