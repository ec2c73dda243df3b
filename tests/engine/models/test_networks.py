"""The networks: parameter counts as published, shapes, and blocks against torchvision's own."""

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual as TorchvisionInvertedResidual
from torchvision.models.resnet import BasicBlock as TorchvisionBasicBlock

from engine.models import networks
from engine.models.features import forward_with_features
from engine.models.mobilenet import InvertedResidual
from engine.models.resnet import BasicBlock

EXACT_COUNTS = [  # name, channels, parameters with 10 classes
    ("lenet_5", 1, 61_706),
    ("lenet_5_half", 1, 35_820),
    ("resnet_18", 3, 11_173_962),
    ("resnet_34", 3, 21_282_122),
    ("vgg_11_bn", 3, 9_231_114),
    ("mobilenet_v2", 3, 2_296_922),
]
ROUNDED_COUNTS = [("wrn_16_1", 175e3), ("wrn_16_2", 692e3), ("wrn_40_1", 564e3), ("wrn_40_2", 2.24e6)]
FEATURES = {  # name: feature map of a 32x32 image
    "lenet_5": (16, 10, 10),
    "lenet_5_half": (8, 10, 10),
    "mobilenet_v2": (1280, 4, 4),
    "resnet_18": (512, 4, 4),
    "resnet_34": (512, 4, 4),
    "vgg_11_bn": (512, 2, 2),
    "wrn_16_1": (64, 8, 8),
    "wrn_16_2": (128, 8, 8),
    "wrn_40_1": (64, 8, 8),
    "wrn_40_2": (128, 8, 8),
}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_every_network_is_tested() -> None:
    assert sorted(FEATURES) == sorted(networks.__all__)


@pytest.mark.parametrize(("name", "in_channels", "expected"), EXACT_COUNTS)
def test_exact_parameter_count(name: str, in_channels: int, expected: int) -> None:
    assert count(getattr(networks, name)(10, in_channels)) == expected


@pytest.mark.parametrize(("name", "expected"), ROUNDED_COUNTS)
def test_rounded_parameter_count(name: str, expected: float) -> None:
    assert count(getattr(networks, name)(10)) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("name", FEATURES)
def test_shapes_and_that_logits_depend_on_every_parameter(name: str) -> None:
    network = getattr(networks, name)(7, 1).eval()
    images = torch.rand(1, 1, 32, 32, requires_grad=True)
    logits, (feature,) = forward_with_features(network, images, [network.feature_path])
    assert logits.shape == (1, 7)
    assert feature.shape == (1, *FEATURES[name])
    logits.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


def copied(source: nn.Module, target: nn.Module) -> nn.Module:
    """`target` with the values of `source`, whose layers are registered in the same order."""
    values = [
        0.05 + 0.2 * torch.rand_like(v) if v.is_floating_point() else v for v in source.state_dict().values()
    ]
    source.load_state_dict(dict(zip(source.state_dict(), values, strict=True)))
    target.load_state_dict(dict(zip(target.state_dict(), values, strict=True)))
    return target


def assert_same_values_and_gradients(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    pairs = []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        output = module.double().eval()(leaf)
        output.square().mean().backward()
        pairs.append((output, leaf.grad))
    torch.testing.assert_close(pairs[0], pairs[1])


@pytest.mark.parametrize(("width", "stride"), [(4, 1), (6, 1), (6, 2)], ids=["same", "wider", "strided"])
def test_resnet_block_equals_torchvision(width: int, stride: int) -> None:
    downsample = None
    if stride != 1 or width != 4:
        downsample = nn.Sequential(nn.Conv2d(4, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    theirs = TorchvisionBasicBlock(4, width, stride, downsample)
    ours = copied(theirs, BasicBlock(4, width, stride))
    assert_same_values_and_gradients(ours, theirs, torch.randn(2, 4, 9, 9, dtype=torch.float64))


@pytest.mark.parametrize(("width", "stride"), [(4, 1), (6, 2)], ids=["same", "strided"])
def test_mobilenet_block_equals_torchvision_below_the_clip_of_relu6(width: int, stride: int) -> None:
    theirs = TorchvisionInvertedResidual(4, width, stride, expand_ratio=6)
    ours = copied(theirs, InvertedResidual(4, width, 6, stride))
    assert_same_values_and_gradients(ours, theirs, torch.randn(2, 4, 9, 9, dtype=torch.float64))


def test_mobilenet_block_projects_the_shortcut_where_the_width_changes() -> None:
    block = InvertedResidual(4, 6, 1, 1).double().eval()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    nn.init.zeros_(block.conv3.weight)
    shortcut = torch.einsum("oi,bihw->bohw", block.shortcut[0].weight[:, :, 0, 0], x) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(block(x), shortcut)


def test_vgg_features_are_torchvisions() -> None:
    theirs = torchvision.models.vgg11_bn(num_classes=10).features.eval()
    network = networks.vgg_11_bn(10).eval()
    network.features.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 64, 32)
    with torch.no_grad():
        expected = theirs(x)  # [1, 512, 2, 1]
        torch.testing.assert_close(network(x), network.classifier(expected.mean((2, 3))))
