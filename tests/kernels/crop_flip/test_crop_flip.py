"""Crop and flip on every instruction set, against a loop over pixels."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import _native
from kernels.backend import use_backend
from kernels.crop_flip import crop_flip

BACKENDS = [*(f"cpp-{isa}" for isa in _native.isas()), "torch"]
SIZES = [(1, 1), (7, 13), (33, 5), (3, 2), (5, 80), (160, 97)]


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    backend, _, isa = request.param.partition("-")
    before = _native.isa()
    _native.select_isa(isa or before)
    with use_backend(backend):
        yield
    _native.select_isa(before)


def draw(batch: int, size: tuple[int, int], pad: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    seeded = torch.Generator().manual_seed(batch)
    images = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=seeded)
    top, left = torch.randint(0, 2 * pad + 1, (2, batch), generator=seeded)
    return images, top, left, torch.rand(batch, generator=seeded) < 0.5


def by_pixel(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> np.ndarray:
    batch, height, width, _ = images.shape
    out = np.zeros(images.shape, np.float32)
    for b, y, x in np.ndindex(batch, height, width):
        row, column = y + int(top[b]) - pad, x + int(left[b]) - pad
        if 0 <= row < height and 0 <= column < width:
            seen_at = width - 1 - x if flip[b] else x
            out[b, y, seen_at] = images[b, row, column].numpy() * np.float32(1 / 255)
    return out


@pytest.fixture(params=["through the caches", "past them"])
def _caches(request: pytest.FixtureRequest) -> Iterator[None]:
    before = _native.last_level_cache_bytes()
    _native.set_last_level_cache_bytes(0 if request.param == "past them" else before)
    yield
    _native.set_last_level_cache_bytes(before)


@pytest.mark.usefixtures("_caches")
@pytest.mark.parametrize("pad", [0, 4])
@pytest.mark.parametrize("size", SIZES[:-1])
def test_every_pixel(size: tuple[int, int], pad: int) -> None:
    """A padding above the size leaves windows that see nothing of their image."""
    given = draw(12, size, pad)
    out = crop_flip(*given, pad=pad)
    assert out.is_contiguous()
    assert np.array_equal(out.numpy(), by_pixel(*given, pad))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("corner", [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)])
def test_the_corners_of_the_offsets_in_threads(corner: tuple[int, int], flip: bool) -> None:
    images, *_ = draw(4, SIZES[-1], 4)
    top, left = (torch.full((4,), offset) for offset in corner)
    given = images, top, left, torch.full((4,), flip)
    expected = by_pixel(*given, 4)
    for threads in (None, 1, 2):
        assert np.array_equal(crop_flip(*given, pad=4, threads=threads).numpy(), expected)


def test_offsets_may_be_strided() -> None:
    images, top, left, flip = draw(6, (5, 5), 4)
    both = torch.stack([top, left], 1)
    again = crop_flip(images, both[:, 0], both[:, 1], flip, pad=4)
    assert torch.equal(again, crop_flip(images, top, left, flip, pad=4))


@pytest.mark.parametrize("size", [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_nothing_gives_nothing(size: tuple[int, int, int]) -> None:
    images = torch.empty(*size, 3, dtype=torch.uint8)
    offsets = torch.zeros(size[0], dtype=torch.int64)
    assert crop_flip(images, offsets, offsets, offsets.bool(), pad=4).shape == images.shape


WRONG = {
    "images": (lambda images, top, left, flip: (images.float(), top, left, flip), "images must be uint8"),
    "channels": (lambda images, top, left, flip: (images[..., :1], top, left, flip), r"\[B, H, W, 3\]"),
    "layout": (lambda images, top, left, flip: (images[:, ::2], top, left, flip), "contiguous"),
    "top": (lambda images, top, left, flip: (images, top + 9, left, flip), "top must lie between 0 and 8"),
    "left": (lambda images, top, left, flip: (images, top, left - 9, flip), "left must lie between 0 and 8"),
    "dtype": (
        lambda images, top, left, flip: (images, top.int(), left, flip),
        r"top must be torch.int64 \[3\]",
    ),
    "length": (
        lambda images, top, left, flip: (images, top, left[:2], flip),
        r"left must be torch.int64 \[3\]",
    ),
    "flip": (
        lambda images, top, left, flip: (images, top, left, flip.int()),
        r"flip must be torch.bool \[3\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str) -> None:
    change, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        crop_flip(*change(*draw(3, (6, 6), 4)), pad=4)
