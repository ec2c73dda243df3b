"""The forward hook of DeepInversion (arXiv 1912.08795, eq. 4) as its descendants attach it."""

import torch
from torch import Tensor, nn


class StatisticsHook:
    """A hook whose `loss` compares the layer's latest input with its running statistics."""

    loss: Tensor

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        layer.register_forward_hook(self._measure)

    def _measure(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor], _output: Tensor) -> None:
        (x,) = inputs
        mean = x.mean([0, 2, 3])
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        self.loss = self._compare(layer, mean, var)

    def _compare(self, layer: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> Tensor:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        return torch.norm(layer.running_var - var, 2) + torch.norm(layer.running_mean - mean, 2)


def attach(module: nn.Module) -> list[StatisticsHook]:
    """Attach a hook to every BatchNorm2d of `module`; nothing ever removes them."""
    return [StatisticsHook(layer) for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


class AveragedStatisticsHook(StatisticsHook):
    """Fast-DFKD's hook: `memory` of what it compares is the average over earlier batches."""

    def __init__(self, layer: nn.BatchNorm2d, memory: float) -> None:
        super().__init__(layer)
        self.memory = memory
        self.latest: tuple[Tensor, Tensor] | None = None
        self.average: tuple[Tensor, Tensor] | None = None

    def _compare(self, layer: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> Tensor:
        self.latest = mean.detach(), var.detach()
        if self.average is not None:
            mean, var = (
                self.memory * old + (1 - self.memory) * new
                for old, new in zip(self.average, (mean, var), strict=True)
            )
        return super()._compare(layer, mean, var)

    def remember(self) -> None:
        """Add the latest statistics to the average; call it after each batch of images."""
        assert self.latest is not None
        if self.average is None:
            self.average = self.latest
            return
        pairs = zip(self.average, self.latest, strict=True)
        mean, var = (self.memory * old + (1 - self.memory) * new for old, new in pairs)
        self.average = mean, var


def attach_averaged(module: nn.Module, memory: float) -> list[AveragedStatisticsHook]:
    """Attach an averaging hook to every BatchNorm2d of `module`; nothing ever removes them."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    return [AveragedStatisticsHook(layer, memory) for layer in layers]
