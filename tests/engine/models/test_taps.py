"""Submodules whose maps distillation aligns: which are found, and what a wrong one says."""

import pytest
import torch
from torch import nn

from engine.errors import UserError
from engine.models.loading import aligned_paths, build_classifier
from engine.models.networks import lenet_5
from tests.classifiers import classifier_config


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("conv9", r"^distill\.taps: the student has no submodule 'conv9'.* conv1, conv2, relu"),
        ("fc3", r"^distill\.taps: 'fc3' of the student returns no feature map .*; name a submodule"),
    ],
)
def test_a_bad_tap_is_named(tap: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_classifier(classifier_config(name="engine:lenet_5"), "student", taps=["conv1", tap])


def test_taps_come_after_the_feature_map_and_tokens_become_maps() -> None:
    config = classifier_config(name="timm:test_vit", image_size=160)
    classifier = build_classifier(config, taps=["blocks.0", "patch_embed"])
    first, *taps = paths = aligned_paths(classifier, "teacher")
    assert first == classifier.feature_path
    assert taps == ["network.blocks.0", "network.patch_embed"]
    _, maps = classifier.eval().with_features(torch.rand(2, 3, 160, 160), paths)
    assert [tuple(each.shape) for each in maps] == [(2, 64, 10, 10)] * 3


def wrapped(num_classes: int, in_channels: int) -> nn.Module:
    return nn.DataParallel(lenet_5(num_classes, in_channels))


def test_a_tap_is_found_in_a_wrapped_network() -> None:
    classifier = build_classifier(classifier_config(name=f"{__name__}:wrapped"), taps=["module.conv1"])
    assert classifier.taps == ("network.conv1",)
    assert classifier.layouts["network.conv1"].order == "nchw"
