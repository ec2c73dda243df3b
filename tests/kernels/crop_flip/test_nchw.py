"""Crop and flip of [B, C, H, W] tensors against a loop of slices, gradients included."""

import pytest
import torch
from torch import Tensor

from kernels.crop_flip import crop_flip_nchw, draw_crops, random_crop_flip


def reference(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
    batch, channels, height, width = images.shape
    rows = []
    for i in range(batch):
        canvas = torch.zeros(channels, height + 2 * pad, width + 2 * pad, dtype=images.dtype)
        canvas[:, pad : pad + height, pad : pad + width] = images[i]
        crop = canvas[:, top[i] : top[i] + height, left[i] : left[i] + width]
        rows.append(crop.flip(2) if flip[i] else crop)
    return torch.stack(rows) if rows else images


def draws(batch: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(batch)
    top, left = torch.randint(0, 2 * pad + 1, (2, batch), generator=g)
    return top, left, torch.rand(batch, generator=g) < 0.5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "pad"),
    [((9, 3, 32, 32), 4), ((5, 1, 7, 11), 2), ((3, 2, 4, 3), 0), ((0, 3, 8, 8), 4)],
    ids=["cifar", "oblong", "no_pad", "empty"],
)
def test_equals_slicing(shape: tuple[int, ...], pad: int, dtype: torch.dtype) -> None:
    images = (255 * torch.rand(shape)).to(dtype)
    parameters = draws(shape[0], pad)
    output = crop_flip_nchw(images, *parameters, pad=pad)
    assert output.dtype == dtype
    assert torch.equal(output, reference(images, *parameters, pad))
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_every_offset_and_flip_equals_slicing() -> None:
    pad = 2
    grid = torch.cartesian_prod(torch.arange(2 * pad + 1), torch.arange(2 * pad + 1), torch.arange(2))
    images = torch.rand(len(grid), 2, 5, 6)
    parameters = grid[:, 0], grid[:, 1], grid[:, 2].bool()
    assert torch.equal(crop_flip_nchw(images, *parameters, pad=pad), reference(images, *parameters, pad))


def test_gradient_equals_that_of_slicing() -> None:
    parameters = draws(6, 2)
    weight = torch.randn(6, 2, 5, 4, dtype=torch.float64)
    gradients = []
    for transform in (
        lambda x: crop_flip_nchw(x, *parameters, pad=2),
        lambda x: reference(x, *parameters, 2),
    ):
        images = torch.arange(240, dtype=torch.float64).view(6, 2, 5, 4).requires_grad_()
        (transform(images) * weight).sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradcheck() -> None:
    parameters = draws(3, 2)
    images = torch.rand(3, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: crop_flip_nchw(x, *parameters, pad=2).sin(), (images,))


def test_random_draws_reach_every_offset_and_both_flips() -> None:
    images = torch.zeros(2000, 1, 3, 3)
    images[:, 0, 1, 1], images[:, 0, 1, 2] = 1, 2  # a pair whose order shows the flip
    output = random_crop_flip(images, torch.Generator().manual_seed(0), pad=1)
    seen = {tuple(image[0].flatten().tolist()) for image in output}
    assert len(seen) == 18
    flipped = (random_crop_flip(images, torch.Generator().manual_seed(0), pad=0)[:, 0, 1, 0] == 2).float()
    assert 0.45 < flipped.mean() < 0.55


def test_random_draws_follow_the_generator() -> None:
    images = torch.rand(16, 3, 8, 8)
    one, again, other = (random_crop_flip(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_without_flips_the_other_draws_are_the_same() -> None:
    usual, unflipped = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for _ in range(2):
        (top, left, flip), (top_of, left_of, none) = (
            draw_crops(50, usual),
            draw_crops(50, unflipped, flip=False),
        )
        assert torch.equal(top, top_of)
        assert torch.equal(left, left_of)
        assert flip.any()
        assert none.dtype == torch.bool
        assert not none.any()
