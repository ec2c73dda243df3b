"""Measure how far the statistics of a batch are from the running ones of BatchNorm and InstanceNorm."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, fx, nn

from kernels.fuse.graph import finish, following_activation, module_of, replace, sharing_tensors, trace
from kernels.fuse.layers import FusedBatchNorm, MeasuredInstanceNorm
from kernels.fuse.norms import has_statistics, is_instance_norm, is_plain, is_scripted, measures


def measured(network: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function x -> (network(x), sum of the statistics losses).

    The sum is over layers: ‖var − running_var‖₂ + ‖mean − running_mean‖₂ of each BatchNorm and InstanceNorm
    in eval mode. Each BatchNorm and the activation that is the only user of its output run as one
    `kernels.bn_stats`. If `network` cannot be traced (see `graph.trace`), activations stay separate.

    `network`, in eval mode, is traced once and never changed, so that another thread may run it meanwhile.
    Its parameters are shared. The function itself is not thread-safe. It raises RuntimeError if no layer
    with running statistics runs.
    """
    losses = _Losses()
    measuring = _measuring(network, losses)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        losses.clear()  # a pass that failed may have left some
        return measuring(x), losses.take()

    return forward


def coverage(network: nn.Module, x: Tensor) -> tuple[dict[str, bool], list[str]]:
    """Run `network`, in eval mode, on x, and return which of its layers `measured(network)` covers.

    Returns:
        The measured layers by path, with whether their losses have a gradient, and the paths of the layers
        with running statistics that run but are not measured. Layers that do not run, such as those of an
        auxiliary head, are in neither. Layers inside TorchScript count as run.
    """
    losses = _Losses()
    _measuring(network, losses)(x)
    measured_paths = losses.paths()
    watched, ran = sharing_tensors(network), set[str]()
    for path, layer in watched.named_modules():
        if has_statistics(layer):
            if is_scripted(layer):
                ran.add(path)
            else:
                layer.register_forward_hook(lambda *_, path=path: ran.add(path))
    with torch.no_grad():
        watched(x)
    missed = [path for path, _ in watched.named_modules() if path in ran and path not in measured_paths]
    return measured_paths, missed


class _Losses:
    """The statistics losses of a forward pass, by the path of their layers."""

    def __init__(self) -> None:
        self._losses: list[tuple[str, Tensor]] = []

    def add(self, path: str, loss: Tensor) -> None:
        self._losses.append((path, loss))

    def paths(self) -> dict[str, bool]:
        """Return the paths of the layers that have run, and whether all losses of each have a gradient."""
        found: dict[str, bool] = {}
        for path, loss in self._losses:
            found[path] = found.get(path, True) and loss.requires_grad
        return found

    def take(self) -> Tensor:
        """Return the sum, a scalar, and forget the losses."""
        if not self._losses:
            raise RuntimeError(
                "no BatchNorm with running statistics ran in eval mode; call network.eval() and check "
                "coverage(network, x)"
            )
        total = torch.stack([loss for _, loss in self._losses]).sum()
        self.clear()
        return total

    def clear(self) -> None:
        self._losses.clear()


def _measuring(network: nn.Module, losses: _Losses) -> nn.Module:
    """Return a module that computes what `network` does, adds to `losses`, and shares its parameters."""
    traced = trace(network)
    if traced is not None:
        return _rewritten(traced, losses)
    copied = sharing_tensors(network)
    layers = [(path, layer) for path, layer in copied.named_modules() if measures(layer)]
    for path, layer in layers:
        kind = MeasuredInstanceNorm if is_instance_norm(layer) else FusedBatchNorm
        layer.forward = kind(layer, on_loss=partial(losses.add, path)).forward
    return copied


def _rewritten(traced: fx.GraphModule, losses: _Losses) -> fx.GraphModule:
    for node in list(traced.graph.nodes):
        layer = module_of(traced, node)
        if layer is None or not measures(layer):
            continue
        on_loss = partial(losses.add, str(node.target))
        if is_instance_norm(layer):
            replace(traced, node, MeasuredInstanceNorm(layer, on_loss))
            continue
        found = following_activation(traced, node) if is_plain(layer) else None
        last, fused = found or (None, None)
        replace(traced, node, FusedBatchNorm(layer, fused, on_loss), last)
    return finish(traced)
