"""Images that cannot be used: one line that names tar and key, from either kind."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.feed.shard import encoded, write_shard
from engine.errors import UserError
from engine.feed.sampler import Order
from tests.bomb import bomb
from tests.engine.feed.spans import TinyBank
from tests.engine.feed.test_feeds import KINDS, opened

pytestmark = pytest.mark.parametrize("kind", KINDS)


def complaint(bank: TinyBank, kind: str) -> str:
    order = Order(bank.index, batch_size=8, seed=1)
    with opened(bank, kind) as feed, pytest.raises(UserError) as error:
        list(feed.batches(order, 0, 6))
    text = str(error.value)
    assert "\n" not in text
    return text


def bank_with(codec: str, folder: Path) -> tuple[TinyBank, Path, int, int]:
    """A bank of two shards; the second one's tar, and offset and size of its fourth image, of key 14."""
    bank = TinyBank.empty(folder, codec, 32)
    bank.add(11)
    spans = bank.add(9)
    return bank, spans.path, int(spans.offsets[3]), int(spans.sizes[3])


@pytest.mark.parametrize("codec", ["png", "jpeg", "webp"])
def test_bytes_of_nothing(kind: str, codec: str, tmp_path: Path) -> None:
    bank, tar, offset, size = bank_with(codec, tmp_path)
    with tar.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * size)
    assert f"{tar}: image 14 cannot be used" in complaint(bank, kind)


@pytest.mark.parametrize("codec", ["png", "jpeg", "webp"])
def test_a_file_cut_off_in_the_middle(kind: str, codec: str, tmp_path: Path) -> None:
    bank, _, _, _ = bank_with(codec, tmp_path)
    whole = encoded(bank.pixels[0], codec)
    tar = tmp_path / "cut.tar"
    bank.index.add(write_shard(tar, [whole[: len(whole) // 2]], [0], codec=codec, first_key=77))
    assert f"{tar}: image 77 cannot be used" in complaint(bank, kind)


@pytest.mark.parametrize("codec", ["raw", "png"])
def test_a_tar_cut_off(kind: str, codec: str, tmp_path: Path) -> None:
    bank, tar, _, _ = bank_with(codec, tmp_path)
    whole = tar.read_bytes()
    last = bank.index.spots(np.array([19]))
    tar.write_bytes(whole[: int(last.offsets[0] + last.sizes[0]) - 1])
    assert f"{tar}: image 19 cannot be used: the tar ends before it does" in complaint(bank, kind)


def test_a_tar_that_is_gone(kind: str, tmp_path: Path) -> None:
    bank, tar, _, _ = bank_with("raw", tmp_path)
    tar.unlink()
    assert f"{tar}: No such file" in complaint(bank, kind)


@pytest.mark.parametrize(("height", "width"), [(40, 32), (32, 24)])
def test_an_image_of_another_size(kind: str, height: int, width: int, tmp_path: Path) -> None:
    bank, _, _, _ = bank_with("png", tmp_path)
    tar = tmp_path / "odd.tar"
    odd = encoded(np.asarray(Image.new("RGB", (width, height))), "png")
    bank.index.add(write_shard(tar, [odd], [0], codec="png", first_key=77))
    text = complaint(bank, kind)
    assert f"{tar}: image 77 cannot be used: it" in text
    of_dali = "to 32x32" in text or f"is {height}x{width}, not 32x32" in text
    assert of_dali if kind == "dali" else "is no RGB image of 32 x 32" in text


def test_a_small_file_of_a_huge_image(kind: str, tmp_path: Path) -> None:
    if kind == "dali":
        pytest.skip("DALI decodes what Pillow refuses to")
    bank, _, _, _ = bank_with("png", tmp_path)
    tar = tmp_path / "bomb.tar"
    bank.index.add(write_shard(tar, [bomb()], [0], codec="png", first_key=77))
    text = complaint(bank, kind)
    assert f"{tar}: image 77 cannot be used: it cannot be decoded" in text
    assert "400000000 pixels" in text


def test_raw_pixels_of_another_size(kind: str, tmp_path: Path) -> None:
    bank, _, _, _ = bank_with("raw", tmp_path)
    tar = tmp_path / "odd.tar"
    odd = encoded(np.zeros((32, 40, 3), np.uint8), "raw")
    bank.index.add(write_shard(tar, [odd], [0], codec="raw", first_key=77))
    assert f"{tar}: image 77 cannot be used: it is not 32x32" in complaint(bank, kind)


def test_the_feed_goes_on_after_an_error(kind: str, tmp_path: Path) -> None:
    bank, tar, offset, size = bank_with("png", tmp_path)
    whole = tar.read_bytes()
    with tar.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * size)
    order = Order(bank.index, batch_size=8, seed=1)
    with opened(bank, kind) as feed:
        with pytest.raises(UserError):
            list(feed.batches(order, 0, 6))
        tar.write_bytes(whole)
        assert len(list(feed.batches(order, 0, 6))) == 6
