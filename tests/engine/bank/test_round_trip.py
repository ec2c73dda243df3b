"""A bank is read as written, for all codecs, keys, labels and sizes; equal input gives equal bytes."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bank.reader import BankReader
from engine.bank.rows import Rows
from engine.bank.table import from_parquet
from engine.bank.verify import verify
from engine.bank.writer import BankWriter
from engine.config.storage import Codec
from tests.engine.bank import tiny


@pytest.mark.parametrize(
    ("codec", "quality", "error"),
    [
        ("raw", 95, 0),
        ("png", 95, 0),
        ("webp", 100, 0),
        ("webp", 90, 12),
        ("jpeg", 95, 12),
    ],
)
def test_images_and_rows_come_back(codec: Codec, quality: int, error: int, tmp_path: Path) -> None:
    tiny.write(tmp_path / "bank", range(2), codec=codec, quality=quality, image_size=(7, 13))
    bank = BankReader.open(str(tmp_path / "bank"))
    assert bank.numbers == [0, 1]
    assert bank.header == tiny.header(codec=codec, quality=quality, image_size=(7, 13))
    for number in bank.numbers:
        rows, images = tiny.shard(number, (7, 13))
        tiny.assert_same(bank.rows(number), rows)
        read = bank.images(number, np.arange(len(images))[::-1])[::-1]
        assert np.abs(read.astype(int) - images).max() <= error
        assert (error == 0) == np.array_equal(read, images)
    assert verify(str(tmp_path / "bank")) == []


def test_spans_lead_to_the_encoded_images(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    rows, images = tiny.shard(1)
    spans = BankReader.open(str(tmp_path)).spans(1)
    tar = spans.path.read_bytes()
    assert spans.path == tmp_path / "00001.tar"
    assert spans.keys.tolist() == rows.keys[rows.kept].tolist()
    assert spans.labels.tolist() == rows.labels[rows.kept].tolist()
    assert spans.agrees.tolist() == (rows.teacher_top1 == rows.labels)[rows.kept].tolist()
    for image, offset, size in zip(images, spans.offsets, spans.sizes, strict=True):
        assert tar[offset : offset + size][128:] == image.tobytes()


def test_rejected_images_are_in_the_parquet_file_alone(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    rows, images = tiny.shard(1)
    table = from_parquet((tmp_path / "rows/00001.parquet").read_bytes(), 3)
    assert 0 < len(images) < len(rows)
    assert (table.offsets[~rows.kept] == -1).all()
    assert (table.sizes[~rows.kept] == 0).all()
    assert (table.sizes[rows.kept] == 128 + 8 * 8 * 3).all()


@pytest.mark.parametrize("codec", tiny.CODECS)
def test_the_same_input_gives_the_same_bytes(codec: Codec, tmp_path: Path) -> None:
    tiny.write(tmp_path / "one", codec=codec)
    tiny.write(tmp_path / "two", [2, 0], codec=codec)
    tiny.write(tmp_path / "two", [1], resume=True, codec=codec)
    assert len(tiny.contents(tmp_path / "one")) == 3 * 4 + 3
    assert tiny.contents(tmp_path / "one") == tiny.contents(tmp_path / "two")


def test_the_images_hash_sees_images_alone(tmp_path: Path) -> None:
    tiny.write(tmp_path / "one")
    tiny.write(tmp_path / "two", facts={"teacher": "another"})
    tiny.write(tmp_path / "three", range(2))
    one, two, three = (BankReader.open(str(tmp_path / it)).images_sha256 for it in ("one", "two", "three"))
    assert one == two != three


def test_new_shards_join_on_refresh(tmp_path: Path) -> None:
    tiny.write(tmp_path, [0])
    bank = BankReader.open(str(tmp_path))
    tiny.write(tmp_path, [0, 4], resume=True)
    assert bank.numbers == [0]
    bank.refresh()
    assert bank.numbers == [0, 4]
    tiny.assert_same(bank.rows(4), tiny.shard(4)[0])


@given(
    keys=st.lists(st.integers(0, 2**62), unique=True, max_size=6),
    size=st.sampled_from([(1, 1), (7, 13), (1, 3), (16, 16)]),
    codec=st.sampled_from(tiny.CODECS),
    number=st.sampled_from([0, 99_999, 100_000]),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_any_shard_comes_back(
    keys: list[int], size: tuple[int, int], codec: Codec, number: int, data
) -> None:
    rng = np.random.default_rng(len(keys))
    column = {"min_size": len(keys), "max_size": len(keys)}
    labels = data.draw(st.lists(st.integers(0, 2), **column))
    kept = np.array(data.draw(st.lists(st.booleans(), **column)), bool)
    rows = Rows(
        keys=np.array(sorted(keys), np.int64),
        labels=np.array(labels, np.int64),
        parents=np.array(keys, np.int64),
        seeds=np.array(keys, np.int64),
        similarity=np.array(
            data.draw(st.lists(st.floats(-1, 1, width=32) | st.just(np.nan), **column)), np.float32
        ),
        passes_clip=kept.copy(),
        kept=kept,
        teacher_top1=np.array(labels, np.int64)[::-1].copy(),
        confidence=np.full(len(keys), 0.1, np.float32),
    )
    images = rng.integers(0, 256, (kept.sum(), *size, 3)).astype(np.uint8)
    with TemporaryDirectory() as folder:
        head = tiny.header(image_size=size, codec=codec)
        with BankWriter.open(folder, head, resume=False) as writer:
            entry = writer.commit(number, rows, images)
            tiny.assert_same(writer.rows(number), rows)
        assert (entry.rows, entry.images) == (len(keys), kept.sum())
        assert verify(folder) == []
        bank = BankReader.open(folder)
        tiny.assert_same(bank.rows(number), rows)
        read = bank.images(number, range(len(images)))
        assert read.shape == images.shape
        if codec in ("raw", "png"):
            assert np.array_equal(read, images)
