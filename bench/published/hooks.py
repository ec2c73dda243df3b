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
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean = x.mean([0, 2, 3])
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        self.loss = torch.norm(layer.running_var - var, 2) + torch.norm(layer.running_mean - mean, 2)


def attach(module: nn.Module) -> list[StatisticsHook]:
    """Attach a hook to every BatchNorm2d of `module`; nothing ever removes them."""
    return [StatisticsHook(layer) for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
