"""The layers that normalize by running statistics: which of them are measured, and which are not."""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Norm = Any
"""A layer that `is_batch_norm`: weight, bias, running_mean, running_var, each [C] (or None), and eps."""


def is_batch_norm(layer: nn.Module) -> bool:
    """Whether `layer` is a BatchNorm of torch.nn, of any rank, SyncBatchNorm or torchvision's frozen one."""
    return isinstance(layer, _BatchNorm) or is_frozen_batch_norm(layer)


def is_frozen_batch_norm(layer: nn.Module) -> bool:
    """torchvision's FrozenBatchNorm2d, which normalizes by its running statistics in train mode too."""
    torchvision = sys.modules.get("torchvision.ops.misc")  # a network that has one has imported it
    return torchvision is not None and type(layer) is torchvision.FrozenBatchNorm2d


def is_timm_batch_norm_act(layer: nn.Module) -> bool:
    """timm's BatchNorm2d that is followed, inside, by `drop` and `act`."""
    timm = sys.modules.get("timm.layers.norm_act")  # a teacher of timm's has imported it
    return timm is not None and type(layer) is timm.BatchNormAct2d


def measures(layer: nn.Module) -> bool:
    """Whether `layer` is a BatchNorm that normalizes by its running statistics."""
    return (
        is_batch_norm(layer) and has_statistics(layer) and (is_frozen_batch_norm(layer) or not layer.training)
    )


def has_statistics(layer: nn.Module) -> bool:
    """Whether `layer`, of whatever kind, keeps running statistics."""
    return isinstance(getattr(layer, "running_mean", None), Tensor)


def is_plain(layer: nn.Module) -> bool:
    """Whether the forward of `layer` is that of BatchNorm, not a subclass's own."""
    own = type(layer).forward
    return own in (_BatchNorm.forward, nn.SyncBatchNorm.forward) or is_frozen_batch_norm(layer)


def as_map(x: Tensor) -> Tensor:
    """[B, C] or [B, C, ...] -> [B, C, H, W] with the same values in each channel; a 4-d x itself."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], -1, 1)


def is_scripted(module: nn.Module) -> bool:
    """Whether `module` is TorchScript, into which neither a hook nor a replaced layer reaches."""
    return isinstance(module, torch.jit.ScriptModule)
