"""Classifiers by name: where they come from, and what a wrong field says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.models.classifier import Classifier
from engine.models.loading import (
    build_classifier,
    load_classifier,
    require_feature,
)
from engine.models.networks import lenet_5_half
from kernels.fuse import fuse_frozen
from tests.classifiers import classifier_config

FACTORIES = """
from typing import NamedTuple
import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

class Tiny(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_classes, 3)
    def forward(self, x):
        return self.conv(x).mean((2, 3))

class Detecting(nn.Module):
    def forward(self, x):
        return [{"boxes": torch.zeros(7, 4), "labels": torch.zeros(7), "scores": torch.zeros(7)} for _ in x]

def detecting(num_classes):
    return Detecting()

class Segmenting(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 1)
    def forward(self, x):
        return {"out": self.conv(x)}

def segmenting(num_classes):
    return Segmenting(num_classes)

def tiny(num_classes, in_channels):
    return Tiny(num_classes, in_channels)

def off_by_one(num_classes, in_channels):
    return Tiny(num_classes + 1, in_channels)

def no_arguments():
    return Tiny(10, 3)

def classes_alone(num_classes):
    return Tiny(num_classes, 3)

def sized(num_classes, in_channels, image_size):
    network = Tiny(num_classes, in_channels)
    network.built_for = image_size
    return network

def anything(**settings):
    network = Tiny(**settings)
    network.built_for = settings
    return network

def other_arguments(depth):
    return Tiny(10, 3)

def not_a_module(num_classes, in_channels):
    return [num_classes, in_channels]

def returns(change):
    class Changed(Tiny):
        def forward(self, x):
            return change(super().forward(x), x)
    return Changed

class Named(NamedTuple):
    logits: torch.Tensor
    image: torch.Tensor

no_output = returns(lambda y, x: None)
one_logit = returns(lambda y, x: y[:, :1])
classes = returns(lambda y, x: (y > 0).long())
softmax = returns(lambda y, x: y.softmax(1))
sigmoid = returns(lambda y, x: torch.sigmoid(y).clamp(1e-6, 1))
spread = returns(lambda y, x: y + (x / x.std((1, 2, 3), keepdim=True)).mean((1, 2, 3))[:, None])
log_softmax = returns(lambda y, x: y.log_softmax(1))
between_0_and_1 = returns(lambda y, x: 0.5 + y / 100)
in_a_dict = returns(lambda y, x: {"logits": y, "image": x})
in_a_tuple = returns(lambda y, x: (x, y))
in_a_list = returns(lambda y, x: [y])
in_a_named_tuple = returns(lambda y, x: Named(y, x))
nested = returns(lambda y, x: (x, {"head": [y]}))
model_output = returns(lambda y, x: ImageClassifierOutput(logits=y, hidden_states=(x, x)))
several = returns(lambda y, x: {"logits": y, "log": y.log_softmax(1), "image": x})
pair = returns(lambda y, x: (y, y + 1))

class Outer(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.inner = in_a_tuple(num_classes, in_channels)
    def forward(self, x):
        return self.inner(x)[1]

nested_twice = Outer

constant = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of an importable module with FACTORIES, new for each test."""
    name = f"factories_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    (tmp_path / f"{name}_broken.py").write_text("import no_such_package_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize(
    ("name", "in_channels", "image_size"),
    [
        ("engine:wrn_16_1", 1, 32),
        ("engine:lenet_5", 3, 32),
        ("timm:test_resnet", 1, 32),
        ("timm:test_efficientnet", 3, 64),
        ("torchvision:squeezenet1_1", 3, 64),
    ],
)
def test_build_by_name(name: str, in_channels: int, image_size: int) -> None:
    config = classifier_config(name=name, num_classes=7, in_channels=in_channels, image_size=image_size)
    classifier = build_classifier(config).eval()
    with torch.no_grad():
        assert classifier(torch.rand(2, 3, image_size, image_size)).shape == (2, 7)
    assert all(p.requires_grad for p in classifier.parameters())
    assert classifier.name == name
    assert classifier.feature_path is not None


def test_build_from_a_factory(factories: str) -> None:
    config = classifier_config(name=f"{factories}:tiny", num_classes=4, in_channels=1, feature="conv")
    classifier = build_classifier(config)
    assert classifier.network.conv.weight.shape == (4, 1, 3, 3)
    assert require_feature(classifier, "teacher") == "network.conv"
    assert classifier.training


@pytest.mark.parametrize("name", ["no_arguments", "classes_alone"])
def test_a_factory_gets_only_the_arguments_that_it_takes(factories: str, name: str) -> None:
    assert build_classifier(classifier_config(name=f"{factories}:{name}")).network.conv.out_channels == 10
    smaller = classifier_config(name=f"{factories}:{name}", num_classes=4)
    if name == "classes_alone":
        assert build_classifier(smaller).network.conv.out_channels == 4
    else:
        with pytest.raises(UserError, match=r"^teacher\.num_classes is 4, but .* returns \[4, 10\]"):
            build_classifier(smaller)


@pytest.mark.parametrize("size", [24, (24, 32)])
def test_a_factory_gets_the_size_as_the_recipe_writes_it(factories: str, size: int | tuple[int, int]) -> None:
    config = classifier_config(name=f"{factories}:sized", image_size=size)
    assert build_classifier(config).network.built_for == size


def test_a_factory_with_keywords_gets_classes_and_channels(factories: str) -> None:
    config = classifier_config(name=f"{factories}:anything", num_classes=4, in_channels=2)
    assert build_classifier(config).network.built_for == {"num_classes": 4, "in_channels": 2}


def test_a_network_that_divides_by_an_images_spread_is_taken(factories: str, tmp_path: Path) -> None:
    config = classifier_config(name=f"{factories}:spread", weights=str(tmp_path / "w.pth"))
    torch.save(build_classifier(config).network.state_dict(), tmp_path / "w.pth")
    load_classifier(config)


def test_random_weights_come_from_the_global_generator() -> None:
    config = classifier_config(name="engine:lenet_5_half", in_channels=1, mean=(0.25,), std=(0.75,))
    torch.manual_seed(3)
    classifier = build_classifier(config)
    torch.manual_seed(3)
    network = lenet_5_half(10, 1)
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(classifier(x.expand(2, 3, 32, 32)), network((x - 0.25) / 0.75))


def test_building_leaves_batch_norm_statistics_untouched() -> None:
    classifier = build_classifier(classifier_config(name="engine:wrn_16_1"))
    assert classifier.training
    assert torch.equal(classifier.network.bn.running_mean, torch.zeros(64))
    assert classifier.network.bn.num_batches_tracked == 0


BASE = classifier_config(name="engine:lenet_5", in_channels=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, r"^student\.num_classes must be a positive integer, got 0"),
        ({"image_size": -1}, r"^student\.image_size must be a positive integer or two, got -1"),
        ({"image_size": (32, 0)}, r"^student\.image_size must be a positive integer or two, got \(32, 0\)"),
        ({"in_channels": 5}, r"^student\.in_channels must be 1, 2, 3 or 4, got 5"),
        ({"mean": (0.1, 0.2)}, r"^student\.mean must be 1 finite number, or 3 .*, got \[0\.1, 0\.2\]"),
        ({"in_channels": 1, "std": (0.1, 0.2, 0.3)}, r"^student\.std must be 1 finite number, or 1 "),
        ({"mean": ()}, r"^student\.mean must be 1 finite number"),
        ({"mean": (float("nan"),)}, r"^student\.mean must be 1 finite number.*nan"),
        ({"num_classes": 1}, r"^student\.num_classes is 1: one logit .* set num_classes to 2"),
        (
            {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
            r"^student\.mean \[123.* and student\.std \[58.* 0\.\.255 scale.* divide by 255: mean \[0\.485, ",
        ),
        ({"std": (0.5, 0.0, 0.5)}, r"^student\.std must be above 0, got \[0\.5, 0\.0, 0\.5\]"),
        (
            {"name": "lenet_5"},
            r"^student\.name must be timm:NAME, .*, got 'lenet_5'; did you mean engine:lenet_5\?",
        ),
        ({"name": "resnet10t"}, r"; did you mean timm:resnet10t\?"),
        ({"name": "timm:resnet10"}, r"in timm; did you mean resnet10\w+\?"),
        ({"name": "torchvision:resnet_18"}, r"in torchvision; did you mean resnet18\?"),
        ({"name": ":lenet_5"}, r"^student\.name must be timm:NAME"),
        ({"name": "timm:"}, r"^student\.name must be timm:NAME"),
        ({"name": "engine:loading"}, r"^student\.name: no network 'loading' in engine; it has lenet_5, "),
        ({"name": "timm:no_such_net"}, r"^student\.name: no network 'no_such_net' in timm"),
        ({"name": "timm:hf-hub:some/one"}, r"^student\.name: no network 'hf-hub:some/one' in timm"),
        ({"name": "torchvision:nope"}, r"^student\.name: no classifier 'nope' in torchvision"),
        (
            {"name": "torchvision:fcn_resnet50"},
            r"^student\.name: 'fcn_resnet50' of torchvision is a network for segmentation",
        ),
        (
            {"name": "torchvision:squeezenet1_1", "in_channels": 1},
            r"^student\.in_channels must be 3 for 'torchvision:squeezenet1_1', got 1",
        ),
        (
            {"image_size": 28},
            r"^student\.image_size is 28x28, but engine:lenet_5 cannot run on a 28x28 image",
        ),
        ({"feature": "conv9"}, r"^student\.feature: no submodule 'network\.conv9'.* conv1, conv2, relu"),
        (
            {"name": "no_such_package.x:f"},
            r"^student\.name: 'no_such_package\.x:f' cannot be built .*No module",
        ),
    ],
)
def test_a_bad_field_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        build_classifier(replace(BASE, **changes), "student")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":absent", r"^teacher\.name: module '\w+' has no function 'absent'"),
        (":constant", r"^teacher\.name: module '\w+' has no function 'constant'"),
        (
            ":other_arguments",
            r"^teacher\.name: .*other_arguments' cannot be built \(TypeError: .*'depth'\)$",
        ),
        (":not_a_module", r"^teacher\.name: .* returned a list, not an nn\.Module"),
        (":off_by_one", r"^teacher\.num_classes is 10, but .*:off_by_one returns \[4, 11\] for 4 images"),
        (":no_output", r"^teacher\.num_classes is 10, but .*:no_output returns NoneType"),
        (
            ":one_logit",
            r"returns \[4, 1\] for 4 images; one logit .* set num_classes to 2 and return torch\.cat",
        ),
        (":classes", r"returns \[4, 10\] of int64 for 4 images"),
        (":softmax", r"^teacher\.name: .*:softmax ends in a softmax .*; return them without the softmax"),
        (":sigmoid", r"^teacher\.name: .*:sigmoid ends in a sigmoid .*; return them without the sigmoid"),
        ("_broken:f", r"^teacher\.name: .*_broken:f' cannot be built .*no_such_package_anywhere"),
    ],
)
def test_a_bad_factory_is_named(factories: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        build_classifier(classifier_config(name=factories + name))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("tiny", None),
        ("log_softmax", None),
        ("between_0_and_1", None),
        ("in_a_dict", None),
        ("in_a_dict", "logits"),
        ("in_a_tuple", None),
        ("in_a_tuple", 1),
        ("in_a_list", None),
        ("in_a_named_tuple", "logits"),
        ("nested", None),
        ("nested", "1.head.0"),
        ("model_output", None),
        ("several", "logits"),
        ("pair", 0),
        ("pair", "1"),
    ],
)
def test_logits_are_found_in_what_the_network_returns(
    factories: str, name: str, output: str | int | None
) -> None:
    config = classifier_config(name=f"{factories}:{name}", output=output, feature="conv")
    torch.manual_seed(0)
    classifier = build_classifier(config)
    images = torch.rand(2, 3, 32, 32)
    expected = Tensor.mean(classifier.network.conv((images - 0.5) / 0.5), (2, 3))
    expected = {"log_softmax": expected.log_softmax(1), "between_0_and_1": 0.5 + expected / 100}.get(
        name, expected + (output == "1")
    )
    with torch.no_grad():
        for _ in ("train", "eval"):
            torch.testing.assert_close(classifier(images), expected.detach())
            classifier.eval()
        fused = fuse_frozen(classifier, ["network.conv"], torch.float32)
        assert fused is not None
        torch.testing.assert_close(fused(images)[0], expected.detach(), rtol=1e-4, atol=1e-5)
        exported = torch.export.export(classifier, (images,)).module()
        torch.testing.assert_close(exported(images), expected.detach())


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        (
            "several",
            None,
            r"^student\.output is not set, and several .* `logits` \[4, 10\], `log` \[4, 10\], `image` .*; "
            r"name one, e\.g\. --student\.output logits$",
        ),
        ("in_a_dict", "scores", r"^student\.output is 'scores', but .* returns `logits` \[4, 10\], `image`"),
        ("in_a_dict", "image", r"^student\.num_classes is 10, but .* returns `logits` \[4, 10\], `image`"),
        ("tiny", "logits", r"^student\.output is 'logits', but .* returns \[4, 10\]; set it to null"),
    ],
)
def test_an_entry_that_cannot_be_taken_is_named(
    factories: str, name: str, output: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_classifier(classifier_config(name=f"{factories}:{name}", output=output), "student")


def test_a_feature_that_is_no_tensor_is_named(factories: str) -> None:
    config = classifier_config(name=f"{factories}:nested_twice", feature="inner")
    with pytest.raises(UserError, match=r"^teacher\.feature: .*inner' .* returns a tuple, not a tensor"):
        build_classifier(config)


def test_require_feature_names_the_field_to_set() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    classifier = Classifier(
        network, num_classes=2, in_channels=3, mean=(0.5,), std=(0.5,), feature_path=None, name="mlp"
    )
    with pytest.raises(UserError, match=r"^student\.feature is not set, and mlp has no feature map"):
        require_feature(classifier, "student")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "detecting",
            r"returns `0\.boxes`, as a detection network does, but the engine distills classifiers",
        ),
        ("segmenting", r"returns `out` \[4, 10, 32, 32\], a map of logits, as a segmentation network does"),
    ],
)
def test_detection_and_segmentation_are_refused_with_the_way_out(
    factories: str, name: str, message: str
) -> None:
    with pytest.raises(UserError, match=rf"^teacher\.name: .*{message}.*; write a factory that returns") as e:
        build_classifier(classifier_config(name=f"{factories}:{name}"))
    assert "\n" not in str(e.value)
