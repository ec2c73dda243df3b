"""Statistics of a measured network against sums written out over the inputs of its layers."""

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from engine.models.networks import wrn_16_1
from kernels.backend import use_backend
from kernels.fuse import coverage, is_batch_norm, measured
from kernels.fuse.graph import trace
from kernels.fuse.layers import FusedBatchNorm
from kernels.fuse.statistics import _Losses, _measuring
from tests.kernels.fuse.networks import (
    Branching,
    Functional,
    Instances,
    OwnNorm,
    Storing,
    Subclassed,
    Twice,
    Untracked,
    Variants,
    lively,
)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "functional": Functional,
    "branching": Branching,
    "twice": Twice,
    "untracked": Untracked,
    "subclass": lambda: Subclassed(keyword=False),
    "called by keyword": lambda: Subclassed(keyword=True),
    "other kinds": Variants,
    "InstanceNorm": Instances,
    "wrn": lambda: wrn_16_1(5),
    "timm BatchNormAct2d": lambda: timm.create_model("mobilenetv2_035", num_classes=5),
    "torchvision": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5),
}


def written_out(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output, and the sum over the inputs of the layers, by hooks, in the dtype of the layers."""
    losses = []

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...], by_name: dict[str, Tensor]) -> None:
        (x,) = (*inputs, *by_name.values())
        if is_batch_norm(layer):
            values = x.transpose(0, 1).flatten(1)
            mean = values.mean(1)
            var = (values - mean[:, None]).square().mean(1)
        else:
            values = x.flatten(2)
            mean = values.mean(2).mean(0)
            var = ((values - values.mean(2, keepdim=True)).square().sum(2) / (values.shape[2] - 1)).mean(0)
        losses.append((var - layer.running_var).norm() + (mean - layer.running_mean).norm())

    handles = [
        layer.register_forward_pre_hook(measure, with_kwargs=True)
        for layer in network.modules()
        if getattr(layer, "running_mean", None) is not None and not layer.training
    ]
    output = network(x)
    for handle in handles:
        handle.remove()
    return output, sum(losses, torch.zeros((), dtype=x.dtype))


@pytest.mark.parametrize("name", NETWORKS)
def test_output_loss_and_gradient(name: str) -> None:
    torch.manual_seed(0)
    network = lively(NETWORKS[name]()).double()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    expected, expected_loss = written_out(network, x)
    output, loss = measured(network)(x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(loss, expected_loss)
    ours, theirs = (
        torch.autograd.grad(o.square().sum() + s, x)[0]
        for o, s in ((output, loss), (expected, expected_loss))
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, partial(nn.InstanceNorm2d, track_running_stats=True)])
def test_the_statistics_are_those_that_train_mode_accumulates(kind: Callable[..., nn.Module]) -> None:
    x, layer = torch.randn(4, 3, 2, 2, dtype=torch.float64), kind(3, momentum=1.0).double()
    layer.train()(x)
    loss = measured(layer.eval())(x)[1]
    unbiased = 0.0 if isinstance(layer, nn.InstanceNorm2d) else 1 / 16  # BatchNorm's loss has the biased one
    assert loss.item() == pytest.approx(unbiased * layer.running_var.norm().item(), abs=1e-12)


def test_a_single_position_has_no_variance() -> None:
    layer = nn.InstanceNorm2d(3, track_running_stats=True).eval()
    x = torch.randn(4, 3, 1, 1)
    torch.testing.assert_close(measured(layer)(x)[1], x.mean((0, 2, 3)).norm() + torch.ones(3).norm())


@pytest.mark.parametrize("name", ["functional", "branching"])
def test_the_kernels_agree_with_plain_torch_in_float32(name: str) -> None:
    torch.manual_seed(0)
    network, x, results = lively(NETWORKS[name]()), torch.rand(4, 3, 16, 16), []
    for backend in (None, "torch"):
        with use_backend(backend):
            results.append(measured(network)(x))
    torch.testing.assert_close(*results)


def test_an_activation_is_fused_if_it_is_the_only_user() -> None:
    own = _measuring(lively(Functional()), _Losses())
    fused = {path: m.fused.activation for path, m in own.named_modules() if isinstance(m, FusedBatchNorm)}
    expected = {"bn0": "silu", "bn1": "leaky_relu", "bn2": "none", "bn3": "relu"}  # bn2 has two users
    assert fused == {f"fused_{path}": activation for path, activation in expected.items()}


def test_a_network_that_stores_what_it_computes_is_left_as_it_was() -> None:
    network, x = lively(Storing()), torch.rand(2, 3, 8, 8)
    before = measured(network)
    assert network.stored == {}
    expected = network(x)
    for forward in (before, measured(network)):
        torch.testing.assert_close(forward(x)[0], expected)


def test_hooks_still_run() -> None:
    network, x, seen = lively(Functional()), torch.rand(2, 3, 8, 8), []
    expected = measured(network)(x)
    network.conv2.register_forward_hook(lambda *_: seen.append("hook"))
    assert trace(network) is None
    torch.testing.assert_close(measured(network)(x), expected)
    assert seen == ["hook"]


def test_a_network_with_a_replaced_forward_is_not_traced() -> None:
    network = lively(Functional())
    network.forward = network.forward
    assert trace(network) is None


def test_each_pass_is_measured_alone() -> None:
    network, x = lively(Functional()), torch.rand(2, 3, 8, 8)
    ask = measured(network)
    with torch.no_grad():
        torch.testing.assert_close(ask(x), ask(x))


def test_a_pass_without_a_measured_layer_is_refused() -> None:
    ask = measured(nn.Conv2d(3, 3, 1))
    with pytest.raises(RuntimeError, match="no BatchNorm with running statistics ran"):
        ask(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["functional", "branching"])
def test_what_is_measured_is_never_changed_and_its_tensors_are_shared(name: str) -> None:
    """Checked from inside a forward pass, during which another thread may run the network."""
    network, x = lively(NETWORKS[name]()), torch.rand(2, 3, 8, 8)
    expected, expected_loss = network(x), written_out(network, x)[1]
    ask = measured(network)
    before = {path: dict(vars(module)) for path, module in network.named_modules()}
    seen = []

    def look(*_: object) -> None:
        seen.append({path: dict(vars(module)) for path, module in network.named_modules()} == before)

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    output, loss = ask(x)
    handle.remove()
    assert seen
    assert all(seen)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(loss, expected_loss)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    with torch.no_grad():
        network.fc.bias += 1
    torch.testing.assert_close(ask(x)[0], expected + 1)


@pytest.mark.parametrize("name", ["functional", "branching"])
def test_a_pass_that_fails_leaves_nothing_for_the_next(name: str) -> None:
    network, x = lively(NETWORKS[name]()), torch.rand(2, 3, 8, 8)
    ask = measured(network)
    expected = ask(x)[1]
    weight = network.fc.weight.data
    network.fc.weight.data = weight[:, :-1]  # fails after the BatchNorms have run
    with pytest.raises(RuntimeError):
        ask(x)
    network.fc.weight.data = weight
    torch.testing.assert_close(ask(x)[1], expected)


@pytest.mark.parametrize("branching", [False, True])
def test_coverage_names_what_is_measured_with_a_gradient_and_what_is_not(branching: bool) -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.instance, self.own = nn.InstanceNorm2d(3, track_running_stats=True), OwnNorm(3)
            self.unused = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            if branching and x.sum() > 1e30:
                x = 2 * x
            return self.second(self.own(self.instance(self.first(x))).detach())

    network = Partly().eval().requires_grad_(False)
    found, missed = coverage(network, torch.rand(2, 3, 4, 4, requires_grad=True))
    assert found == {"first": True, "instance": True, "second": False}
    assert missed == ["own"]


def test_relative_losses_are_the_mean_of_ratios() -> None:
    network, x = lively(wrn_16_1(5)).double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    layers = [layer for layer in network.modules() if is_batch_norm(layer)]
    ratios = []

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        distance = (var - layer.running_var).norm() + (mean - layer.running_mean).norm()
        ratios.append(distance / (layer.running_var.norm() + layer.running_var.sqrt().norm()))

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    network(x)
    for hook in hooks:
        hook.remove()
    _, loss = measured(network, relative=True)(x)
    torch.testing.assert_close(loss, torch.stack(ratios).mean())
