"""The feature map that is found by running a network, and the layouts that maps come in."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from engine.models.classifier import Classifier
from engine.models.feature_map import find_feature_map, layout_of
from engine.models.features import FeatureLayout, to_nchw

CLASSES = 5


def classifier(network: nn.Module, num_classes: int = CLASSES) -> Classifier:
    made = Classifier(
        network, num_classes=num_classes, in_channels=3, mean=(0.5,), std=(0.25,), feature_path=None
    )
    return made.eval().requires_grad_(False)


class Net(nn.Module):
    """A body and a head; `aux` runs on the body's map, but its result is not used."""

    def __init__(self, body: nn.Module, head: nn.Module, aux: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.aux, self.head = body, aux or nn.Identity(), head

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        self.aux(x)
        return self.head(x)


class Pooled(nn.Module):
    """The average over two axes, and a linear layer."""

    def __init__(self, channels: int, axes: tuple[int, ...] = (2, 3)) -> None:
        super().__init__()
        self.axes, self.fc = axes, nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(self.axes))


class Permuted(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


def convs(channels: int, stride: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU())


def test_the_outermost_module_names_the_map() -> None:
    found = find_feature_map(classifier(Net(nn.Sequential(convs(8)), Pooled(8))), (16, 16))
    assert found == ("network.body", FeatureLayout("nchw", (4, 4)), 8)


def test_what_the_logits_do_not_depend_on_is_no_feature_map() -> None:
    found = find_feature_map(classifier(Net(convs(8), Pooled(8), aux=nn.Conv2d(8, 8, 1))), (16, 16))
    assert found is not None
    assert found.path == "network.body"


def test_a_head_of_zeros_does_not_hide_the_map() -> None:
    head = Pooled(8)
    nn.init.zeros_(head.fc.weight)
    found = find_feature_map(classifier(Net(convs(8), head)), (16, 16))
    assert found is not None
    assert found.path == "network.body"


@pytest.mark.parametrize(
    "head",
    [
        lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES)),
        lambda: nn.Sequential(nn.Conv2d(8, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        lambda: nn.Sequential(nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    ],
    ids=["pooling", "logits", "layers"],
)
def test_maps_of_pooling_and_heads_do_not_count(head: Callable[[], nn.Module]) -> None:
    found = find_feature_map(classifier(Net(convs(8), head())), (16, 16))
    assert found is not None
    assert found.path == "network.body"


def test_a_layer_that_is_called_again_later_does_not_name_an_earlier_map() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU()
            self.fc, self.last = nn.Linear(8, 8), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(self.fc(self.act(self.conv(x)).mean((2, 3)))))

    found = find_feature_map(classifier(Shared()), (16, 16))
    assert found is not None
    assert found.path == "network.conv"


def test_a_network_without_a_map_has_none() -> None:
    assert find_feature_map(classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES))), (4, 4)) is None


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (15, 22)], ids=str)
@pytest.mark.parametrize("channels", [4, 6, 8])
def test_channels_last_maps_are_told_apart(channels: int, size: tuple[int, int]) -> None:
    """For 16x16 images and 4 channels, all sides of the map are equal."""
    grid = -(-size[0] // 4), -(-size[1] // 4)
    body = nn.Sequential(convs(channels), Permuted(0, 2, 3, 1), nn.Linear(channels, channels))
    last = find_feature_map(classifier(Net(body, Pooled(channels, (1, 2)))), size)
    first = find_feature_map(classifier(Net(convs(channels), Pooled(channels))), size)
    assert last == ("network.body", FeatureLayout("nhwc", grid), channels)
    assert first == ("network.body", FeatureLayout("nchw", grid), channels)


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (15, 22)], ids=str)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_lie_on_the_grid_of_the_patches(prefix: int, size: tuple[int, int]) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            return self.norm(torch.cat([x[:, :1].expand(-1, prefix, -1), x], 1))

    net = classifier(Net(Tokens(), Pooled(8, (1,))))
    found = find_feature_map(net, size)
    assert found == ("network.body", FeatureLayout("tokens", (size[0] // 4, size[1] // 4), prefix), 8)
    assert layout_of(net, "network.body", size) == found.layout
    assert layout_of(net, "network.body.patches", size) == FeatureLayout("nchw", found.layout.grid)
    assert layout_of(net, "network.head", size) is None


def test_to_nchw_gives_the_same_values_in_every_layout() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    tokens = torch.cat([torch.zeros(2, 2, 3), x.flatten(2).transpose(1, 2)], 1)
    assert torch.equal(to_nchw(x, None), x)
    assert torch.equal(to_nchw(x, FeatureLayout("nchw", (4, 5))), x)
    assert torch.equal(to_nchw(x.permute(0, 2, 3, 1), FeatureLayout("nhwc", (4, 5))), x)
    assert torch.equal(to_nchw(tokens, FeatureLayout("tokens", (4, 5), 2)), x)


def test_hooks_are_removed_and_the_network_is_unchanged() -> None:
    net = classifier(timm.create_model("test_vit", num_classes=CLASSES))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert find_feature_map(net, (160, 160)) is not None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
