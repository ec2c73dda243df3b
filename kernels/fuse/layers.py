"""Layers that replace layers of a network, and copies of layers."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kernels.bn_stats import bn_act, bn_stats
from kernels.bn_stats.reference import fold
from kernels.fuse.graph import Fused, fused_module
from kernels.fuse.norms import Norm, as_map, is_plain, is_timm_batch_norm_act


class FusedBatchNorm(nn.Module):
    """A BatchNorm in eval mode and the activation that follows it, in one pass over the input.

    `on_loss` is called with the statistics loss of each forward pass; without it, no loss is computed.
    Activations inside timm's BatchNormAct2d that the op does not support run separately. Any other subclass
    with a forward of its own keeps that forward and is only measured.
    """

    def __init__(
        self,
        layer: Norm,
        fused: Fused | None = None,
        on_loss: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self.layer, self.on_loss = layer, on_loss
        self.rest: list[nn.Module] = []
        self.known = is_plain(layer) or is_timm_batch_norm_act(layer)
        if is_timm_batch_norm_act(layer):
            inner = [layer.get_submodule(name) for name in ("drop", "act")]
            self.rest = [module for module in inner if not isinstance(module, nn.Identity)]
            if self.rest and (first := fused_module(self.rest[0])) is not None:
                fused, self.rest = first, self.rest[1:]
        self.fused = fused or Fused()

    def forward(self, input: Tensor) -> Tensor:  # BatchNorm names it `input`
        layer = self.layer
        assert layer.running_mean is not None
        assert layer.running_var is not None
        parameters = layer.weight, layer.bias, layer.running_mean, layer.running_var
        settings = self.fused.activation, self.fused.negative_slope
        x = as_map(input)
        if self.on_loss is None:
            y = bn_act(x, *parameters, eps=layer.eps, activation=settings[0], negative_slope=settings[1])
        else:
            y, loss = bn_stats(
                x, *parameters, eps=layer.eps, activation=settings[0], negative_slope=settings[1]
            )
            self.on_loss(loss)
        if not self.known:
            output: Tensor = type(layer).forward(layer, input)
            return output
        y = y if y.ndim == input.ndim else y.reshape(input.shape)
        for module in self.rest:
            y = module(y)
        return y


class MeasuredInstanceNorm(nn.Module):
    """An InstanceNorm in eval mode; `on_loss` is called with the statistics loss of each forward pass.

    The statistics are what train mode accumulates: the means over the images of each image's mean and
    unbiased variance (the biased one, 0, for a single position).
    """

    def __init__(self, layer: Norm, on_loss: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.layer, self.on_loss = layer, on_loss

    def forward(self, input: Tensor) -> Tensor:  # InstanceNorm names it `input`
        layer = self.layer
        wide = input.to(torch.promote_types(input.dtype, torch.float32)).flatten(2)
        var, mean = torch.var_mean(wide, 2, correction=min(wide.shape[2] - 1, 1))
        d_mean, d_var = mean.mean(0) - layer.running_mean, var.mean(0) - layer.running_var
        self.on_loss(torch.linalg.vector_norm(d_var) + torch.linalg.vector_norm(d_mean))
        output: Tensor = type(layer).forward(layer, input)
        return output


@torch.no_grad()
def folded_conv(conv: nn.Conv2d, norm: Norm) -> nn.Conv2d:
    """Return a new, frozen convolution equal to `conv` followed by `norm` in eval mode.

    W' = W · γ / √(σ² + ε); b' = (b - μ) · γ / √(σ² + ε) + β, in float64.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale, shift = fold(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    folded = copy.deepcopy(conv).requires_grad_(False)
    folded.weight.copy_(conv.weight.double() * scale.view(-1, 1, 1, 1))
    bias = shift if conv.bias is None else shift + conv.bias.double() * scale
    folded.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    return folded


def frozen_copy(layer: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format) -> nn.Module:
    """Return a copy without gradients, its parameters in `dtype`, 4-d ones in `memory_format`."""
    return copy.deepcopy(layer).requires_grad_(False).to(dtype).to(memory_format=memory_format)
