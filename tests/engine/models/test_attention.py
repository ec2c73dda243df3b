"""Which submodules are found to compute self-attention, by what runs inside them and not by their names."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.attention import attention_output, attention_paths


class Tokens(nn.Module):
    """Patches of an image as tokens, some layers on them, and their average."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.patches, self.layers = nn.Conv2d(3, 8, 4, 4), nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1)


class Mixing(nn.Module):
    """Attention written out, with one of the ways to compute it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.qkv, self.softmax, self.way = nn.Linear(8, 24), nn.Softmax(-1), way

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.way == "fused":
            h = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(2, 3)
            softmax = {
                "function": F.softmax,
                "method": Tensor.softmax,
                "module": lambda s, _: self.softmax(s),
            }
            h = softmax[self.way](scores, -1) @ v
        return h.transpose(1, 2).flatten(2)


class Channels(nn.Module):
    """Attention of channels to channels (XCiT), with as many channels in a head as given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.fc = channels, nn.Linear(8, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x).unflatten(2, (2, self.channels)).permute(0, 2, 3, 1)
        scores = F.softmax(x @ x.transpose(2, 3), -1)
        return (scores @ x).flatten(1, 2).transpose(1, 2)


@pytest.mark.parametrize("way", ["fused", "function", "method", "module"])
def test_the_module_around_the_attention_is_found(way: str) -> None:
    network = Tokens(nn.Linear(8, 8), Mixing(way), nn.Softmax(-1), Mixing(way))
    assert attention_paths(network, torch.rand(2, 3, 16, 16)) == ["layers.1", "layers.3"]


@pytest.mark.parametrize("channels", [3, 4, 20])
def test_other_softmaxes_do_not_count(channels: int) -> None:
    network = nn.Sequential(Tokens(Channels(channels)), nn.Softmax(1))
    assert attention_paths(network, torch.rand(2, 3, 16, 16)) == []


@pytest.mark.parametrize("batch_first", [False, True])
def test_what_multihead_attention_returns_is_brought_to_batch_first(batch_first: bool) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

        def forward(self, x: Tensor) -> Tensor:
            x = x if batch_first else x.transpose(0, 1)
            x = self.attention(x, x, x)[0]
            return x if batch_first else x.transpose(0, 1)

    network = Tokens(Own())
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    (path,) = attention_paths(network, images)
    assert path == "layers.0.attention"
    seen = []
    module = network.get_submodule(path)
    module.register_forward_hook(lambda module, _, output: seen.append(attention_output(module, output)))
    network(images)
    assert seen[0].shape == (2, 16, 8)


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [("test_vit", 160, 6), ("test_convnext", 64, 0), ("test_resnet", 64, 0)],
)
def test_networks_of_timm(name: str, size: int, count: int) -> None:
    network = timm.create_model(name, num_classes=5).eval()
    paths = attention_paths(network, torch.rand(2, 3, size, size))
    assert len(paths) == count
    assert all(type(network.get_submodule(path)).__name__ == "Attention" for path in paths)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
