"""Frozen copies against their networks."""

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn

from engine.models.networks import wrn_16_1
from kernels.fuse import fuse_frozen
from kernels.fuse.layers import FusedBatchNorm, folded_conv
from tests.kernels.fuse.networks import Branching, Functional, Subclassed, Twice, Variants, lively

CASES: dict[str, tuple[Callable[[], nn.Module], str, int]] = {  # maker, tap, BatchNorms left
    "functional": (Functional, "act", 2),
    "twice": (Twice, "bn", 0),
    "subclass": (lambda: Subclassed(keyword=False), "first", 1),
    "other kinds": (Variants, "flat", 4),
    "wrn": (lambda: wrn_16_1(5), "relu", 7),
    "timm BatchNormAct2d": (lambda: timm.create_model("mobilenetv2_035", num_classes=5), "bn2", 52),
    "torchvision": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5), "conv5", 0),
}


@pytest.mark.parametrize("name", CASES)
def test_output_features_and_gradient(name: str) -> None:
    torch.manual_seed(0)
    make, tap, left = CASES[name]
    network = lively(make()).double()
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    seen = []
    handle = network.get_submodule(tap).register_forward_hook(lambda _m, _i, output: seen.append(output))
    expected = network(x)
    handle.remove()
    fused = fuse_frozen(network.requires_grad_(True), [tap], torch.float64)
    assert fused is not None
    output, (feature,) = fused(x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(feature, seen[-1])
    ours, theirs = (
        torch.autograd.grad(o.square().sum() + f.square().sum(), x)[0]
        for o, f in ((output, feature), (expected, seen[-1]))
    )
    torch.testing.assert_close(ours, theirs)
    assert sum(isinstance(m, FusedBatchNorm) for m in fused.modules()) == left
    assert not any(p.requires_grad for p in fused.parameters())


def test_later_changes_of_the_network_do_not_reach_the_copy() -> None:
    torch.manual_seed(0)
    network, x = lively(Functional()), torch.rand(2, 3, 8, 8)
    fused = fuse_frozen(network, [], torch.float32)
    assert fused is not None
    before = network(x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    torch.testing.assert_close(fused(x)[0], before)


def test_weights_have_the_given_dtype_and_run_under_autocast() -> None:
    torch.manual_seed(0)
    network, x = lively(wrn_16_1(5)), torch.rand(4, 3, 32, 32)
    fused = fuse_frozen(network, ["relu"], torch.bfloat16)
    assert fused is not None
    assert {m.weight.dtype for m in fused.modules() if isinstance(m, nn.Conv2d | nn.Linear)} == {
        torch.bfloat16
    }
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output, (feature,) = fused(x)
    exact = network(x)
    assert output.dtype == feature.dtype == torch.bfloat16
    assert (output - exact).norm() < 0.03 * exact.norm()


def test_a_network_that_cannot_be_traced_has_no_copy() -> None:
    assert fuse_frozen(lively(Branching()), [], torch.float32) is None
    assert fuse_frozen(lively(Functional()), ["absent"], torch.float32) is None


@pytest.mark.parametrize("bias", [False, True])
def test_a_folded_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias).double()
    norm = lively(nn.BatchNorm2d(6, eps=1e-3)).double()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(folded_conv(conv, norm)(x), norm(conv(x)))
