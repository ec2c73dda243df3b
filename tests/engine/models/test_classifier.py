"""The door of a classifier: luma and normalisation."""

import pytest
import torch
from torch import nn

from engine.models.classifier import Classifier


def identity(in_channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Classifier:
    return Classifier(
        nn.Identity(), num_classes=2, in_channels=in_channels, mean=mean, std=std, feature_path=None
    )


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5,), (0.25,)), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ((0.1, 0.2, 0.3), (0.5,))],
    ids=["one", "per_channel", "mixed"],
)
def test_rgb_is_normalised_per_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    images = torch.rand(2, 3, 4, 5)
    output = identity(3, mean, std)(images)
    for c in range(3):
        m, s = mean[c % len(mean)], std[c % len(std)]
        torch.testing.assert_close(output[:, c], (images[:, c] - m) / s)


def test_a_grey_network_gets_the_luma() -> None:
    images = torch.rand(2, 3, 4, 5)
    expected = (0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2] - 0.3) / 0.2
    torch.testing.assert_close(identity(1, (0.3,), (0.2,))(images), expected[:, None])


def test_grey_images_in_rgb_keep_their_value_for_a_grey_network() -> None:
    grey = torch.rand(2, 1, 4, 5)
    torch.testing.assert_close(identity(1, (0.0,), (1.0,))(grey.expand(2, 3, 4, 5)), grey)


def test_the_state_dict_is_the_networks_alone() -> None:
    network = nn.Linear(2, 2)
    classifier = Classifier(
        network, num_classes=2, in_channels=3, mean=(0.5,), std=(0.5,), feature_path="x", name="mine"
    )
    assert set(classifier.state_dict()) == {"network.weight", "network.bias"}
    assert (classifier.feature_path, classifier.name) == ("network.x", "mine")


@pytest.mark.parametrize(
    ("in_channels", "mean", "std"),
    [
        (1, (0.3,), (0.2,)),
        (2, (0.3,), (0.2,)),
        (2, (0.3, 0.4), (0.2, 0.5)),
        (3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        (4, (0.1, 0.2, 0.3, 0.4), (0.4, 0.5, 0.6, 0.7)),
        (4, (0.3,), (0.2,)),
    ],
)
def test_the_input_of_each_number_of_channels(
    in_channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    images = torch.rand(2, 3, 4, 5)
    red, green, blue = images.unbind(1)
    luma, opaque = 0.299 * red + 0.587 * green + 0.114 * blue, torch.ones(2, 4, 5)
    by_channels = {
        1: [luma],
        2: [luma, opaque],
        3: [red, green, blue],
        4: [red, green, blue, opaque],
    }
    adapted = identity(in_channels, mean, std).adapted(images)
    assert adapted.shape == (2, in_channels, 4, 5)
    for c, channel in enumerate(by_channels[in_channels]):
        torch.testing.assert_close(adapted[:, c], (channel - mean[c % len(mean)]) / std[c % len(std)])
