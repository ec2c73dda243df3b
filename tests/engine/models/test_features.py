"""Inner activations of one forward pass: the right values, and no hook afterwards."""

import pytest
import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.models.features import forward_with_features
from engine.models.networks import wrn_16_1


class Reversed(nn.Module):
    """Runs `second` before `first`, never `unused`, and fails on negative input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.untracked = nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.untracked(self.first(3 * self.second(x)))
        if (x < 0).any():
            raise RuntimeError("negative")
        return y


def num_hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_features_are_the_outputs_of_their_submodules() -> None:
    network, images = wrn_16_1(10).eval(), torch.rand(2, 3, 16, 16)
    logits, (relu, stem) = forward_with_features(network, images, ["relu", "conv1"])
    torch.testing.assert_close(stem, network.conv1(images))
    torch.testing.assert_close(relu, network.relu(network.bn(network.stages(network.conv1(images)))))
    torch.testing.assert_close(logits, network(images))
    assert num_hooks(network) == 0


def test_gradients_flow_through_features() -> None:
    network, images = wrn_16_1(10).eval(), torch.rand(2, 3, 32, 32, requires_grad=True)
    _, (feature,) = forward_with_features(network, images, ["relu"])
    (taken,) = torch.autograd.grad(feature.square().sum(), images)
    inner = network.relu(network.bn(network.stages(network.conv1(images))))
    (expected,) = torch.autograd.grad(inner.square().sum(), images)
    torch.testing.assert_close(taken, expected)


def test_a_wrong_path_names_itself_and_where_it_ended_and_leaves_no_hook() -> None:
    network = wrn_16_1(10)
    with pytest.raises(
        UserError, match=r"no submodule 'stages\.0\.7\.bn1'.* children of stages\.0 are: 0, 1"
    ):
        forward_with_features(network, torch.rand(1, 3, 32, 32), ["relu", "stages.0.7.bn1"])
    assert num_hooks(network) == 0


def test_a_submodule_that_did_not_run_is_named() -> None:
    module = Reversed().eval()
    with pytest.raises(UserError, match="'unused' of Reversed did not run"):
        forward_with_features(module, torch.rand(1, 2, 3, 3), ["first", "unused"])
    assert num_hooks(module) == 0


def test_an_exception_leaves_no_hook() -> None:
    module = Reversed()
    with pytest.raises(RuntimeError, match="negative"):
        forward_with_features(module, -torch.rand(2, 2, 3, 3), ["first"])
    assert num_hooks(module) == 0
