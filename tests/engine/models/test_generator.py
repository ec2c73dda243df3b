"""The sizes of the generator's images, and its layers for the sizes that it always had."""

import pytest
import torch

from engine.models.generator import MAX_START, Generator


def layers(size: tuple[int, int], width: int = 64) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Generator(width=width, size=size).named_parameters()}


@pytest.mark.parametrize(
    "size",
    [(28, 28), (32, 32), (30, 50), (50, 30), (17, 200), (1, 1), (3, 65), (224, 224), (384, 384)],
    ids=lambda size: "x".join(map(str, size)),
)
def test_images_have_the_size_and_lie_between_0_and_1(size: tuple[int, int]) -> None:
    generator = Generator(latent_dim=4, width=2, channels=2, size=size)
    images = generator(torch.randn(2, 4))
    assert images.shape == (2, 2, *size)
    assert 0 < images.min() < images.max() < 1
    images.sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_the_layers_for_small_images_are_the_published_ones() -> None:
    convolutions = {"blocks.1": (128, 128), "blocks.4": (64, 128), "blocks.7": (3, 64)}
    norms = {"blocks.0": 128, "blocks.2": 128, "blocks.5": 64}
    expected: dict[str, tuple[int, ...]] = {"project.weight": (8192, 256), "project.bias": (8192,)}
    for name, (out, into) in convolutions.items():
        expected |= {f"{name}.weight": (out, into, 3, 3), f"{name}.bias": (out,)}
    for name, channels in norms.items():
        expected |= {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}
    assert layers((32, 32)) == expected
    assert layers((64, 64)).keys() == expected.keys()
    assert layers((16, 16)) | {"project.weight": (8192, 256), "project.bias": (8192,)} == expected


@pytest.mark.parametrize(("side", "doublings"), [(64, 2), (65, 3), (128, 3), (224, 4), (256, 4), (384, 5)])
def test_larger_images_have_more_doublings_not_a_larger_linear_layer(side: int, doublings: int) -> None:
    shapes = layers((side, side))
    convolutions = [shape for shape in shapes.values() if len(shape) == 4]
    assert len(convolutions) == doublings + 1
    assert shapes["project.bias"][0] <= 128 * MAX_START**2


def test_margins_are_cut_off_evenly() -> None:
    cut, whole = (
        Generator(latent_dim=4, width=2, size=(30, 50)),
        Generator(latent_dim=4, width=2, size=(32, 52)),
    )
    whole.load_state_dict(cut.state_dict())
    z = torch.randn(2, 4)
    torch.testing.assert_close(cut(z), whole(z)[:, :, 1:31, 1:51])
