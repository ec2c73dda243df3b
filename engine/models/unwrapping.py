"""Remove the wrappers that parallel training and compilation put around modules."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

INNER = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Wrappers' names for the inner module: DataParallel, torch.compile, activation checkpointing, FSDP."""


class _BatchNorm1To3d(_BatchNorm):
    """A BatchNorm over [B, C, ...] in a single process: SyncBatchNorm without the sync."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected [B, C, ...], got {list(input.shape)}")


def unwrapped(network: nn.Module) -> nn.Module:
    """Return `network` without any wrappers, with the same parameters and buffers.

    A SyncBatchNorm becomes an ordinary BatchNorm; the engine synchronizes statistics over ranks itself.
    """
    plain: dict[nn.Module, nn.Module] = {}  # a layer used twice stays one
    network = _inside(network)
    for module in list(network.modules()):
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = _inside(child)
    for module in list(network.modules()):
        for name, child in module._modules.items():
            if type(child) is nn.SyncBatchNorm:
                module._modules[name] = plain.setdefault(child, _without_sync(child))
    return _without_sync(network) if type(network) is nn.SyncBatchNorm else network


def without_wrapper_parts(path: str, network: nn.Module) -> str:
    """Return a submodule's `path` in `network` without the parts that named its removed wrappers."""
    parts = path.split(".")
    known = {part for name, _ in network.named_modules() for part in name.split(".")}
    return ".".join(part for part in parts if part in known or part not in INNER)


def _inside(module: nn.Module) -> nn.Module:
    while (inner := _inner_module(module)) is not None:
        module = inner
    return module


def _inner_module(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.DataParallel | DistributedDataParallel):
        return module.module
    children = dict(module.named_children())
    only = next(iter(children)) if len(children) == 1 else None
    return children[only] if only in INNER[1:] else None


def _without_sync(layer: nn.SyncBatchNorm) -> nn.Module:
    plain = _BatchNorm1To3d(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )
    plain._parameters, plain._buffers = layer._parameters, layer._buffers
    return plain.train(layer.training)
