"""Banks of an earlier version can be read; grey images are stored in one channel."""

from pathlib import Path

import numpy as np
import pytest

from engine.bank.manifest import Manifest
from engine.bank.merge import merge
from engine.bank.reader import BankReader, snapshot
from engine.bank.verify import verify
from engine.config.storage import Codec
from engine.errors import UserError
from tests.engine.bank import tiny


def test_a_bank_of_version_1_is_read_verified_and_merged_and_not_continued(tmp_path: Path) -> None:
    old, out = tmp_path / "old", tmp_path / "out"
    tiny.write(old)
    hashes = snapshot(BankReader.open(str(old)))
    tiny.to_version_1(old)
    (old / "README.md").write_text("in the words of that version")
    before = tiny.contents(old)
    assert verify(str(old)) == []
    bank = BankReader.open(str(old))
    assert bank.header.channels == 3
    assert snapshot(bank) == hashes
    rows, images = tiny.shard(1)
    tiny.assert_same(bank.rows(1), rows)
    assert np.array_equal(bank.images(1, range(len(images))), images)
    with pytest.raises(UserError, match=r"begun by an earlier version .* first classes only .* new bank"):
        tiny.write(old, range(4), resume=True)
    assert tiny.contents(old) == before
    tiny.write(tmp_path / "new", [5])
    merge([str(old), str(tmp_path / "new")], str(out), resume=False)
    assert verify(str(out)) == []
    assert Manifest.from_json((out / "manifest.json").read_bytes(), "").version == 2
    assert BankReader.open(str(out)).numbers == [0, 1, 2, 3]


def test_a_stranger_in_an_old_bank_and_a_missing_file_are_named(tmp_path: Path) -> None:
    tiny.write(tmp_path, [0])
    tiny.to_version_1(tmp_path)
    (tmp_path / "00000.parquet").unlink()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "00000.parquet").write_bytes(b"")
    assert [problem.file for problem in verify(str(tmp_path))] == ["00000.parquet", "rows/00000.parquet"]


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    tiny.write(tmp_path, [0])
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"version": 2', b'"version": 3'))
    with pytest.raises(UserError, match=r"has version 3, but this engine reads versions 1 to 2"):
        BankReader.open(str(tmp_path))


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg"])
def test_grey_images_are_stored_in_one_channel_and_read_as_rgb(codec: Codec, tmp_path: Path) -> None:
    tiny.write(tmp_path / "grey", [1], codec=codec, channels=1, image_size=(32, 32))
    tiny.write(tmp_path / "rgb", [1], codec=codec, image_size=(32, 32))
    assert verify(str(tmp_path / "grey")) == []
    grey, rgb = (BankReader.open(str(tmp_path / name)) for name in ("grey", "rgb"))
    assert grey.header.channels == 1
    assert grey.spans(1).sizes.sum() < 0.8 * rgb.spans(1).sizes.sum()
    _, images = tiny.shard(1, (32, 32))
    read = grey.images(1, range(len(images))).astype(int)
    assert read.shape == images.shape
    assert np.abs(read - tiny.grey(images)).max() <= (4 if codec == "jpeg" else 0)


def test_coloured_images_do_not_get_into_a_grey_bank(tmp_path: Path) -> None:
    from engine.bank.writer import BankWriter

    with BankWriter.open(str(tmp_path), tiny.header(channels=1), resume=False) as writer:
        with pytest.raises(ValueError, match="three equal channels"):
            writer.commit(0, *tiny.shard(0))
        assert dict(writer.committed) == {}
