"""The reader and verify name a file that was cut, altered or deleted; resume makes it again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.bank.codecs import encode
from engine.bank.fingerprint import Fingerprint
from engine.bank.manifest import Manifest
from engine.bank.reader import BankReader
from engine.bank.shard import shard_contents
from engine.bank.verify import verify
from engine.config.storage import Codec
from engine.errors import UserError
from tests.bomb import bomb
from tests.engine.bank import tiny

FILES = ("00001.tar", "index/00001.idx", "rows/00001.parquet", "stats/00001.json")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = {_flip: "was altered", _cut: "bytes, not", _empty: "has 0 bytes, not", Path.unlink: "is missing"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda it: it.__name__)
def test_a_bad_file_is_named_and_made_again(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    tiny.write(tmp_path)
    before = tiny.contents(tmp_path)
    damage(tmp_path / name)
    problems = verify(str(tmp_path))
    assert [problem.file for problem in problems] == [name]
    assert DAMAGES[damage] in problems[0].what
    said = tiny.write(tmp_path, resume=True)
    assert len(said) == 1
    assert f"shard 00001 will be made again: {name} {problems[0].what}" in said[0]
    assert tiny.contents(tmp_path) == before


@pytest.mark.parametrize("name", ["00001.tar", "rows/00001.parquet"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda it: it.__name__)
def test_the_reader_names_the_shard_and_the_next_step(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    tiny.write(tmp_path)
    damage(tmp_path / name)
    bank = BankReader.open(str(tmp_path))
    bank.images(0, [0])
    with pytest.raises(UserError, match=rf"shard 00001: {name} .*engine\.bank verify {tmp_path}.*--resume"):
        bank.images(1, [0])


def test_without_verification_only_what_is_read_is_checked(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    tar = tmp_path / "00001.tar"
    spans = BankReader.open(str(tmp_path)).spans(1)
    data = bytearray(tar.read_bytes())
    data[spans.offsets[1]] ^= 1
    tar.write_bytes(data)
    bank = BankReader.open(str(tmp_path), verify=False)
    assert bank.images(1, [0, 2]).any()
    with pytest.raises(UserError, match=rf"shard 00001: image {spans.keys[1]} is not a numpy file"):
        bank.images(1, [1])


def test_a_flipped_byte_in_the_manifest_or_the_card(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    before = tiny.contents(tmp_path)
    _flip(tmp_path / "README.md")
    assert [problem.file for problem in verify(str(tmp_path))] == ["README.md"]
    tiny.write(tmp_path, resume=True)
    assert tiny.contents(tmp_path) == before
    _flip(tmp_path / "manifest.json")
    for read in (verify, BankReader.open):
        with pytest.raises(UserError, match=r"manifest\.json is damaged .*restore"):
            read(str(tmp_path))


def test_what_is_no_bank_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"{folder} has no manifest\.json"):
            BankReader.open(str(folder))


def _swapped(folder: Path, name: str, other: str) -> None:
    """Replace a file of shard 1 by a file of shard 0, and update the manifest."""
    data = other.encode() if other == "null" else (folder / other).read_bytes()
    (folder / name).write_bytes(data)
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes(), "")
    entry = manifest.shards[1]
    entry = replace(entry, files={**entry.files, name: Fingerprint.of(data)})
    manifest = replace(manifest, shards={**manifest.shards, 1: entry})
    (folder / "manifest.json").write_bytes(manifest.to_json())


@pytest.mark.parametrize(
    ("name", "other", "file", "what"),
    [
        ("00001.tar", "00000.tar", "00001.tar", "but its parquet file has 000000001000"),
        ("00001.tar", "null", "00001.tar", "cut off"),
        ("index/00001.idx", "index/00000.idx", "index/00001.idx", "does not match the tar"),
        ("rows/00001.parquet", "null", "rows/00001.parquet", "cannot be read"),
        ("stats/00001.json", "stats/00000.json", "stats/00001.json", "does not match the rows"),
    ],
)
def test_files_that_disagree_are_found_though_their_hashes_are_right(
    name: str, other: str, file: str, what: str, tmp_path: Path
) -> None:
    tiny.write(tmp_path)
    (tmp_path / "README.md").unlink()
    _swapped(tmp_path, name, other)
    problems = verify(str(tmp_path))
    assert any(problem.file == file and what in problem.what for problem in problems)


def test_rows_that_no_writer_would_write_are_found(tmp_path: Path) -> None:
    rows, images = tiny.shard(1)
    tiny.write(tmp_path)
    many = replace(tiny.header(), class_names=(*tiny.CLASSES, "hat"))
    foreign = shard_contents(1, replace(rows, labels=rows.labels + 1), images, many)
    (tmp_path / "null.parquet").write_bytes(foreign["rows/00001.parquet"])
    _swapped(tmp_path, "rows/00001.parquet", "null.parquet")
    (tmp_path / "null.parquet").unlink()
    problems = verify(str(tmp_path))
    assert [str(problem) for problem in problems] == [
        "rows/00001.parquet has invalid rows: a label is not in [0, 3)"
    ]
    with pytest.raises(UserError, match=r"shard 00001: .*a label is not in \[0, 3\)"):
        BankReader.open(str(tmp_path)).rows(1)


@pytest.mark.parametrize("codec", tiny.CODECS)
def test_an_image_that_cannot_be_decoded_is_found(codec: Codec, tmp_path: Path) -> None:
    tiny.write(tmp_path, codec=codec)
    (tmp_path / "README.md").unlink()
    spans = BankReader.open(str(tmp_path)).spans(1)
    tar = bytearray((tmp_path / "00001.tar").read_bytes())
    tar[spans.offsets[2] : spans.offsets[2] + 60] = bytes(60)
    (tmp_path / "null.tar").write_bytes(tar)
    _swapped(tmp_path, "00001.tar", "null.tar")
    (tmp_path / "null.tar").unlink()
    problems = verify(str(tmp_path))
    assert [problem.file for problem in problems] == ["00001.tar"]
    assert f"{spans.keys[2]:012d}" in problems[0].what


def test_a_small_file_of_a_huge_image_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else in the bank is sound."""
    with monkeypatch.context() as patch:
        patch.setattr("engine.bank.shard.encode", lambda *of: [bomb(), *encode(*of)[1:]])
        tiny.write(tmp_path, [0], codec="png")
    bank = BankReader.open(str(tmp_path))
    key = bank.spans(0).keys[0]
    (problem,) = verify(str(tmp_path))
    assert str(problem).startswith(f"00000.tar has {key:012d}.png, which cannot be decoded (")
    assert "400000000 pixels" in problem.what
    with pytest.raises(UserError, match=rf"shard 00000: image {key} cannot be decoded .*400000000 pixels"):
        bank.images(0, [0])


@pytest.mark.parametrize("codec", tiny.CODECS)
def test_images_of_another_size_are_found(codec: Codec, tmp_path: Path) -> None:
    tiny.write(tmp_path, codec=codec)
    other = shard_contents(1, *tiny.shard(1, (8, 9)), tiny.header(codec=codec, image_size=(8, 9)))
    (tmp_path / "null.tar").write_bytes(other["00001.tar"])
    _swapped(tmp_path, "00001.tar", "null.tar")
    (tmp_path / "null.tar").unlink()
    problems = verify(str(tmp_path))
    assert (
        sum("is not an RGB image of 8 x 8" in it.what or "uint8 [8, 8, 3]" in it.what for it in problems)
        == 10
    )
