"""Crop and flip through the registered op, against a loop over pixels.

Triton runs on a GPU, or in its interpreter with TRITON_INTERPRET=1, which conftest.py sets if there is none.
"""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import _native
from kernels.backend import backend_for, use_backend
from kernels.crop_flip import crop_flip

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = [
    *(f"cpp-{isa}" for isa in _native.isas()),
    "torch",
    pytest.param("triton", marks=[] if INTERPRETED else pytest.mark.gpu),
]
SIZES = [(1, 1), (7, 13), (33, 5), (3, 2), (5, 80), (2, 700), (160, 97)]


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Select a backend and an instruction set; the device for the images."""
    backend, _, isa = request.param.partition("-")
    before = _native.isa()
    _native.select_isa(isa or before)
    with use_backend(backend):
        yield "cuda" if backend == "triton" and not INTERPRETED else "cpu"
    _native.select_isa(before)


def interpreted() -> bool:
    """Return whether the backend under test is Triton's interpreter, which is slow."""
    return INTERPRETED and backend_for(torch.zeros(1)) == "triton"


def draw(
    batch: int, size: tuple[int, int], pad: int, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    seeded = torch.Generator().manual_seed(batch)
    images = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=seeded)
    top, left = torch.randint(0, 2 * pad + 1, (2, batch), generator=seeded).to(device)
    return images.to(device), top, left, (torch.rand(batch, generator=seeded) < 0.5).to(device)


def by_pixel(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> np.ndarray:
    pixels, tops, lefts, flips = (x.cpu().numpy() for x in (images, top, left, flip))
    batch, height, width, _ = pixels.shape
    out = np.zeros(pixels.shape, np.float32)
    for b, y, x in np.ndindex(batch, height, width):
        row, column = y + tops[b] - pad, x + lefts[b] - pad
        if 0 <= row < height and 0 <= column < width:
            out[b, y, width - 1 - x if flips[b] else x] = pixels[b, row, column]
    return out * np.float32(1 / 255)


@pytest.fixture(params=["through the caches", "past the caches"])
def _caches(request: pytest.FixtureRequest) -> Iterator[None]:
    before = _native.last_level_cache_bytes()
    _native.set_last_level_cache_bytes(0 if request.param == "past the caches" else before)
    yield
    _native.set_last_level_cache_bytes(before)


@pytest.mark.usefixtures("_caches")
@pytest.mark.parametrize("pad", [0, 4])
@pytest.mark.parametrize("size", SIZES[:-1])
def test_every_pixel(device: str, size: tuple[int, int], pad: int) -> None:
    """With a padding above the size, some windows show nothing of their image."""
    given = draw(4 if interpreted() else 12, size, pad, device)
    out = crop_flip(*given, pad=pad)
    assert out.is_contiguous()
    assert np.array_equal(out.cpu().numpy(), by_pixel(*given, pad))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("corner", [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)])
def test_the_corners_of_the_offsets_in_threads(device: str, corner: tuple[int, int], flip: bool) -> None:
    images, *_ = draw(4, (9, 7) if interpreted() else SIZES[-1], 4, device)
    top, left = (torch.full((4,), offset, device=device) for offset in corner)
    given = images, top, left, torch.full((4,), flip, device=device)
    expected = by_pixel(*given, 4)
    for threads in (None,) if interpreted() else (None, 1, 2):
        assert np.array_equal(crop_flip(*given, pad=4, threads=threads).cpu().numpy(), expected)


def test_offsets_may_be_strided(device: str) -> None:
    images, top, left, flip = draw(6, (5, 5), 4, device)
    both = torch.stack([top, left], 1)
    again = crop_flip(images, both[:, 0], both[:, 1], flip, pad=4)
    assert torch.equal(again, crop_flip(images, top, left, flip, pad=4))


@pytest.mark.parametrize("size", [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_an_empty_batch_gives_an_empty_batch(device: str, size: tuple[int, int, int]) -> None:
    images = torch.empty(*size, 3, dtype=torch.uint8, device=device)
    offsets = torch.zeros(size[0], dtype=torch.int64, device=device)
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
@pytest.mark.parametrize("backend", ["cpp", "torch", "triton"])
def test_wrong_arguments_are_named(backend: str, name: str) -> None:
    change, words = WRONG[name]
    with use_backend(backend), pytest.raises(ValueError, match=words):
        crop_flip(*change(*draw(3, (6, 6), 4)), pad=4)


@pytest.mark.parametrize("device", BACKENDS[-1:], indirect=True)
@pytest.mark.parametrize("offset", [-(2**40), -1, 9, 2**40])
def test_triton_leaves_an_image_with_a_wrong_offset_black(
    device: str, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU does not wait for the host to look at the offsets."""
    monkeypatch.setattr("kernels.crop_flip.op.check_offsets", lambda _: None)
    images, top, left, flip = draw(3, (6, 6), 4, device)
    expected = by_pixel(images, top, left, flip, 4)
    expected[1] = 0
    for wrong in (top, left):
        kept = wrong[1].clone()
        wrong[1] = offset
        assert np.array_equal(crop_flip(images, top, left, flip, pad=4).cpu().numpy(), expected)
        wrong[1] = kept


def test_the_override_chooses_the_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **_by_name: object) -> None:
        raise AssertionError("the native kernel ran")

    monkeypatch.setattr(_native, "crop_flip_forward", refuse)
    given = draw(3, (6, 6), 4)
    with use_backend("torch"):
        assert np.array_equal(crop_flip(*given, pad=4).numpy(), by_pixel(*given, 4))
    with pytest.raises(AssertionError, match="native"):
        crop_flip(*given, pad=4)


@pytest.mark.parametrize("threads", [None, 2])
def test_the_op_is_registered_well(threads: int | None) -> None:
    arguments = (*draw(3, (6, 5), 4), 4, threads)
    checks = torch.library.opcheck(torch.ops.kernels.crop_flip.default, arguments)
    assert set(checks.values()) == {"SUCCESS"}


def test_it_compiles_as_one_graph() -> None:
    def step(images: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
        return 2 * crop_flip(images, top, left, flip, pad=4)

    given = draw(3, (6, 5), 4)
    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(*given), step(*given))


@pytest.mark.gpu
def test_captured_in_a_graph() -> None:
    given, other = (draw(batch, (33, 48), 4, "cuda") for batch in (5, 5))
    other[1].fill_(8)
    crop_flip(*given, pad=4)  # compiles the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = crop_flip(*given, pad=4)
    for static, new in zip(given, other, strict=True):
        static.copy_(new)
    graph.replay()
    assert np.array_equal(captured.cpu().numpy(), by_pixel(*other, 4))
