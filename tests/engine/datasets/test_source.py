"""Image files of every mode become RGB uint8 of one size, and a file that cannot be read is named."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.datasets.source import Encoded, decode, index_labels
from engine.errors import UserError
from tests.bomb import bomb
from tests.labeled_images import pixels, png

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = pixels(1)[0]


def encoded(image: Image.Image, kind: str, **settings: object) -> Encoded:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return Encoded("x", file.getvalue())


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    expected = RGB.transpose(2, 0, 1)
    for content in (png(RGB), Image.fromarray(RGB), RGB):
        found = decode(Encoded("x", content), (16, 16))
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)


def test_grey_becomes_three_equal_channels() -> None:
    sources = [encoded(Image.fromarray(GREY), "png"), Encoded("x", GREY), Encoded("x", GREY[..., None])]
    for source in sources:
        assert np.array_equal(decode(source, (16, 16)), np.stack([GREY] * 3))


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_sixteen_bits_keep_the_upper_eight(kind: str) -> None:
    """A clip to 255, as PIL's own conversion does it, would leave a white image."""
    deep = (GREY.astype(np.uint16) << 8) + 37
    found = decode(encoded(Image.fromarray(deep), kind), (16, 16))
    assert np.array_equal(found, np.stack([GREY] * 3))


def test_one_bit_becomes_black_and_white() -> None:
    bits = GREY > 100
    found = decode(encoded(Image.fromarray(bits), "png"), (16, 16))
    assert np.array_equal(found, np.stack([bits * np.uint8(255)] * 3))


def test_a_palette_is_looked_up_with_and_without_transparency() -> None:
    palette = Image.fromarray(RGB).quantize(200)
    colours = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    for settings in ({}, {"transparency": 3}, {"transparency": bytes(range(200))}):
        assert np.array_equal(decode(encoded(palette, "png", **settings), (16, 16)), colours)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    image.putalpha(Image.fromarray(GREY))
    colours = np.asarray(Image.fromarray(RGB).convert(mode[:-1]).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode(encoded(image, "png"), (16, 16)), colours)


def test_a_cmyk_jpeg_has_its_colours() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = decode(encoded(red, "jpeg"), (16, 16)).mean((1, 2))
    assert np.allclose(found, (255, 0, 0), atol=6)


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("blue", "lime")]
    source = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert decode(source, (16, 16))[:, 3, 3].tolist() == [0, 0, 255]


@pytest.mark.parametrize(("height", "width"), [(12, 48), (48, 12), (24, 24), (6, 40)])
def test_the_centre_of_the_longer_side_is_kept(height: int, width: int) -> None:
    """Green in the middle square, red outside: none of the red is left, nor is anything stretched."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 255
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = (0, 255, 0)
    found = decode(Encoded("x", png(image)), (16, 16))
    assert found.shape == (3, 16, 16)
    assert found[1, 1:-1, 1:-1].min() == 255
    assert found[0, 1:-1, 1:-1].max() == 0


def test_the_size_is_height_and_width() -> None:
    assert decode(Encoded("x", png(RGB)), (8, 20)).shape == (3, 8, 20)


def test_a_smaller_image_is_averaged_not_picked() -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    found = decode(Encoded("x", png(np.stack([checks] * 3, 2))), (16, 16))
    assert abs(found[:, 2:-2, 2:-2].astype(int) - 128).max() < 12


@pytest.mark.parametrize(
    "content",
    [png(RGB)[:200], b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x93NUMPY\x01\x00", bomb()],
    ids=["truncated", "empty", "text", "eps", "npy", "bomb"],
)
def test_what_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(content)
    for source in (Encoded("a.tar: 1.png", content), Encoded("a.tar: 1.png", path)):
        with pytest.raises(UserError, match=r"a\.tar: 1\.png cannot be read as an image \(.+\); restore it"):
            decode(source, (16, 16))


def test_pickles_and_floats_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(UserError, match="x cannot be read.*allow_pickle"):
        decode(Encoded("x", file.getvalue()), (16, 16))
    floats = tmp_path / "f.tiff"
    Image.fromarray(RGB[..., 0].astype(np.float32)).save(floats)
    with pytest.raises(UserError, match="f.tiff cannot be read .*32-bit floats"):
        decode(Encoded(str(floats), floats), (16, 16))
    with pytest.raises(UserError, match=re.escape("float32 [16, 16], not uint8")):
        decode(Encoded("x", RGB[..., 0].astype(np.float32)), (16, 16))


def test_labels_are_numbers_or_sorted_names() -> None:
    labels, names = index_labels([3, 0, 3], "x")
    assert (labels.tolist(), labels.dtype, names) == ([3, 0, 3], np.int64, None)
    labels, names = index_labels(["dog", "cat", "dog"], "x")
    assert (labels.tolist(), names) == ([1, 0, 1], ("cat", "dog"))
    for mixed in ([0, "cat"], ["cat", 7]):
        with pytest.raises(UserError, match=r"x: some labels are text \('cat'\) and some are numbers"):
            index_labels(mixed, "x")
    with pytest.raises(UserError, match=r"x: label 1000000000000000000000 is no class"):
        index_labels([1, 10**21], "x")
