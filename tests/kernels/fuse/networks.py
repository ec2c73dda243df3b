"""Small networks for each case that rewriting must handle."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


@torch.no_grad()
def lively(network: nn.Module) -> nn.Module:
    """Freeze `network` in eval mode, and give its norms random parameters and statistics."""
    for layer in network.modules():
        if getattr(layer, "running_mean", None) is not None and not isinstance(layer, OwnNorm):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 1.5)
            if layer.weight is not None:
                layer.weight.normal_(1, 0.2)
                layer.bias.normal_(0, 0.2)
    return network.eval().requires_grad_(False)


class Functional(nn.Module):
    """BatchNorm, functional activations, one activation module used twice, a BatchNorm with two users."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1)
        self.bn0, self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(3), *(nn.BatchNorm2d(8) for _ in range(3))
        self.act, self.fc = nn.LeakyReLU(0.3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.bn0(x))
        h = self.act(self.bn1(self.conv1(h)))
        both = self.bn2(self.conv2(h))
        h = self.act(both) + both
        return self.fc(self.bn3(h).relu().mean((2, 3)))


class Branching(nn.Module):
    """A network that cannot be traced, because its control flow depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn(self.conv(x)))
        if h.sum() > 1e30:
            h = 2 * h
        return self.fc(h.mean((2, 3)))


class Twice(nn.Module):
    """One convolution and one BatchNorm, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(F.relu6(self.bn(self.conv(x))))).mean((2, 3))


class Untracked(nn.Module):
    """A BatchNorm without running statistics, one in train mode, and one that is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3)
        self.third = nn.BatchNorm2d(3)

    def train(self, mode: bool = True) -> "Untracked":
        super().train(mode)
        self.second.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x))).mean((2, 3))


class Scaled(nn.BatchNorm2d):
    """A subclass whose forward does more than a BatchNorm's."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Subclassed(nn.Module):
    """The subclass above, followed by an activation, and a BatchNorm called by keyword."""

    def __init__(self, *, keyword: bool) -> None:
        super().__init__()
        self.first, self.second, self.keyword = Scaled(3), nn.BatchNorm2d(3), keyword

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        return (self.second(input=h) if self.keyword else self.second(h)).mean((2, 3))


class Variants(nn.Module):
    """BatchNorms of other kinds and ranks, one of them inside a module of torch.nn."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.DataParallel(nn.Sequential(nn.SyncBatchNorm(3), nn.ReLU(), nn.Conv2d(3, 4, 3)))
        self.frozen, self.flat, self.row = FrozenBatchNorm2d(4), nn.BatchNorm1d(4), nn.SyncBatchNorm(4)
        self.volume = nn.BatchNorm3d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.frozen(self.body(x)))
        h = self.volume(h[:, :, None])[:, :, 0]
        return self.row(F.relu(self.flat(h.flatten(2))).mean(2))


class Instances(nn.Module):
    """InstanceNorms of two ranks, with parameters and without, one without running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.InstanceNorm2d(3, track_running_stats=True)
        self.body = nn.DataParallel(nn.InstanceNorm1d(3, affine=True, track_running_stats=True))
        self.without = nn.InstanceNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        h = self.body(h.flatten(2)).view_as(h)
        return self.without(h).square().mean((2, 3))


class OwnNorm(nn.Module):
    """A layer of somebody's own that keeps running statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.running_mean.view(1, -1, 1, 1)


class Storing(nn.Module):
    """Keeps what it has computed in a dict, as timm's LeViT does with its attention biases in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.bias = nn.BatchNorm2d(3), nn.Parameter(torch.rand(3, 1, 1))
        self.stored: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.stored:
            self.stored["bias"] = 2 * self.bias
        return self.bn(x + self.stored["bias"])
