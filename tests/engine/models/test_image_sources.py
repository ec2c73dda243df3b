"""The sources of images next to the plain generator: pixels, the noisy layer and the block inverse."""

import pytest
import torch

from engine.models.block_inverse import BlockInverse
from engine.models.classifier import Classifier
from engine.models.feature_map import maps_by_size
from engine.models.generator import Generator, NoisyGenerator
from engine.models.networks import wrn_16_1
from engine.models.pixels import Pixels

LABELS = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("size", [(28, 28), (32, 48), (5, 5), (240, 240)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_have_the_size_lie_between_0_and_1_and_pass_gradients(
    size: tuple[int, int], channels: int
) -> None:
    pixels = Pixels(batch_size=4, channels=channels, size=size)
    pixels.init_weights(torch.Generator().manual_seed(0))
    images = pixels(torch.empty(0), LABELS)
    assert images.shape == (4, channels, *size)
    assert 0 < images.min() < images.max() < 1
    images.square().sum().backward()
    assert all(level.grad is not None and level.grad.any() for level in pixels.levels)


def test_the_levels_of_pixels_double_up_to_the_image() -> None:
    sides = [level.shape[-1] for level in Pixels(batch_size=1, channels=1, size=(60, 60)).levels]
    assert sides == [8, 15, 30, 60]


def test_no_two_images_of_a_class_go_through_the_same_noisy_layer() -> None:
    torch.manual_seed(0)
    generator = Generator(latent_dim=8, width=2, size=(8, 8))
    noisy = NoisyGenerator(generator, torch.randn(3, 5), latent_dim=8, batch_size=4).eval()
    images = noisy(torch.empty(0), LABELS)
    assert images.shape == (4, 3, 8, 8)
    assert not torch.equal(images[0], images[3])


def test_the_block_inverse_predicts_the_map_of_each_size() -> None:
    torch.manual_seed(0)
    teacher = Classifier(
        wrn_16_1(3, 1), num_classes=3, in_channels=1, mean=[0.5], std=[0.5], feature_path="relu"
    ).eval()
    maps = maps_by_size(teacher, (32, 32))
    assert [found.layout.grid for found in maps] == [(16, 16), (8, 8)]
    inverse = BlockInverse(Generator(latent_dim=8, width=4, channels=1, size=(32, 32)), maps)
    z = torch.randn(4, 8)
    inverse(z, LABELS)
    predicted = [
        head(inverse._maps[source]).detach()
        for head, source in zip(inverse.heads, inverse.sources, strict=True)
    ]
    assert inverse.loss(predicted) < 1e-6
    images = inverse(z, LABELS)
    _, features = teacher.with_features(images.expand(-1, 3, -1, -1), inverse.paths)
    loss = inverse.loss(features)
    assert loss > 0.01
    loss.backward()
    assert inverse.generator.entrance.weight.grad is not None
    assert inverse.generator.entrance.weight.grad.any()
