"""Tell apart the layers that normalize by running statistics."""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

Norm = Any
"""A layer that `is_batch_norm` accepts: weight, bias, running_mean, running_var ([C] or None) and eps."""


def is_batch_norm(layer: nn.Module) -> bool:
    """Return whether `layer` is any BatchNorm of torch.nn, SyncBatchNorm, or torchvision's frozen one."""
    return isinstance(layer, _BatchNorm) or is_frozen_batch_norm(layer)


def is_frozen_batch_norm(layer: nn.Module) -> bool:
    """Return whether `layer` is a FrozenBatchNorm2d, which uses its running statistics even in train mode."""
    torchvision = sys.modules.get("torchvision.ops.misc")  # a network with such a layer has imported it
    return torchvision is not None and type(layer) is torchvision.FrozenBatchNorm2d


def is_timm_batch_norm_act(layer: nn.Module) -> bool:
    """Return whether `layer` is timm's BatchNorm2d with `drop` and `act` inside."""
    timm = sys.modules.get("timm.layers.norm_act")  # a network with such a layer has imported it
    return timm is not None and type(layer) is timm.BatchNormAct2d


def is_instance_norm(layer: nn.Module) -> bool:
    """Return whether `layer` is any InstanceNorm of torch.nn."""
    return isinstance(layer, _InstanceNorm)


def normalizes_by_statistics(layer: nn.Module) -> bool:
    """Return whether `layer` is a BatchNorm or InstanceNorm that has running statistics to measure."""
    return (is_batch_norm(layer) or is_instance_norm(layer)) and has_statistics(layer)


def measures(layer: nn.Module) -> bool:
    """Return whether `layer` is a BatchNorm or InstanceNorm that normalizes by its running statistics."""
    return normalizes_by_statistics(layer) and (is_frozen_batch_norm(layer) or not layer.training)


def has_statistics(layer: nn.Module) -> bool:
    """Return whether `layer`, of any kind, keeps running statistics."""
    return isinstance(getattr(layer, "running_mean", None), Tensor)


def is_plain(layer: nn.Module) -> bool:
    """Return whether `layer` runs BatchNorm's forward, not one of a subclass."""
    forward = type(layer).forward
    return forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward) or is_frozen_batch_norm(layer)


def as_map(x: Tensor) -> Tensor:
    """Reshape `x` [B, C] or [B, C, ...] to [B, C, H, W] with the same values in each channel."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], -1, 1)


def is_scripted(module: nn.Module) -> bool:
    """Return whether `module` is TorchScript, which takes neither hooks nor replaced layers."""
    return isinstance(module, torch.jit.ScriptModule)
