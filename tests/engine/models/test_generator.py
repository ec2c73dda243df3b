"""The sizes of the generator's images, and its layers for the sizes that it always had."""

import pytest
import torch

from engine.models.generator import MAX_START, Generator

LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    "size",
    [(28, 28), (32, 32), (30, 50), (50, 30), (17, 200), (1, 1), (3, 65), (224, 224), (384, 384)],
    ids=lambda size: "x".join(map(str, size)),
)
def test_images_have_the_size_and_lie_between_0_and_1(size: tuple[int, int]) -> None:
    generator = Generator(latent_dim=4, width=2, channels=2, size=size)
    images = generator(torch.randn(2, 4), LABELS)
    assert images.shape == (2, 2, *size)
    assert 0 < images.min() < images.max() < 1
    images.sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


@pytest.mark.parametrize(
    ("side", "sides"),
    [
        (28, [7, 14, 28]),
        (32, [4, 8, 16, 32]),
        (64, [4, 8, 16, 32, 64]),
        (224, [7, 14, 28, 56, 112, 224]),
        (240, [4, 8, 16, 32, 64, 128, 256]),
    ],
)
def test_larger_images_have_more_doublings_not_more_weights(side: int, sides: list[int]) -> None:
    with torch.device("meta"):
        generator = Generator(size=(side, side))
    assert generator.sides == sides
    assert generator.sides[0] <= MAX_START
    assert sum(parameter.numel() for parameter in generator.parameters()) < 3e6


def test_the_label_matters_only_if_the_generator_sees_it() -> None:
    z = torch.randn(2, 4)
    for num_classes in (None, 3):
        generator = Generator(latent_dim=4, width=2, num_classes=num_classes).eval()
        same = torch.equal(generator(z, LABELS), generator(z, LABELS + 1))
        assert same == (num_classes is None)


def test_margins_are_cut_off_evenly() -> None:
    cut, whole = (
        Generator(latent_dim=4, width=2, size=(30, 50)),
        Generator(latent_dim=4, width=2, size=(32, 52)),
    )
    whole.load_state_dict(cut.state_dict())
    z = torch.randn(2, 4)
    torch.testing.assert_close(cut(z, LABELS), whole(z, LABELS)[:, :, 1:31, 1:51])
