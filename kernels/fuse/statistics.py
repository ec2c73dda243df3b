"""Measure how far the statistics of a batch are from the running ones of BatchNorm and InstanceNorm."""

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from kernels.fuse.graph import finish, following_activation, module_of, replace, sharing_tensors, trace
from kernels.fuse.layers import FusedBatchNorm, MeasuredInstanceNorm
from kernels.fuse.norms import Norm, has_statistics, is_instance_norm, is_plain, is_scripted, measures


def measured(network: nn.Module, *, relative: bool = False) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function x -> (network(x), statistics loss).

    The loss of a layer, a BatchNorm or InstanceNorm in eval mode, is ‖var − running_var‖₂ + ‖mean −
    running_mean‖₂. The result is their sum or, if `relative`, the mean of their ratios to ‖running_var‖₂ +
    ‖√running_var‖₂, which are comparable for networks of any depth and width. Each BatchNorm and
    the activation that is the only user of its output run as one `kernels.bn_stats`. If `network` cannot be
    traced (see `graph.trace`), activations stay separate.

    `network`, in eval mode, is traced once and never changed, so that another thread may run it meanwhile.
    Its parameters are shared. The function itself is not thread-safe. It raises RuntimeError if no layer
    with running statistics runs.
    """
    losses = _Losses(relative=relative)
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

    def __init__(self, *, relative: bool = False) -> None:
        self._relative = relative
        self._losses: list[tuple[str, Tensor]] = []

    def of(self, path: str, layer: Norm) -> Callable[[Tensor], None]:
        """Return a function that adds a loss of this layer."""
        scale = _scale(layer) if self._relative else None

        def add(loss: Tensor) -> None:
            self._losses.append((path, loss if scale is None else loss / scale))

        return add

    def paths(self) -> dict[str, bool]:
        """Return the paths of the layers that have run, and whether all losses of each have a gradient."""
        found: dict[str, bool] = {}
        for path, loss in self._losses:
            found[path] = found.get(path, True) and loss.requires_grad
        return found

    def take(self) -> Tensor:
        """Return the sum of the losses, or the mean of relative ones, a scalar, and forget them."""
        if not self._losses:
            raise RuntimeError(
                "no BatchNorm with running statistics ran in eval mode; call network.eval() and check "
                "coverage(network, x)"
            )
        losses = torch.stack([loss for _, loss in self._losses])
        self.clear()
        return losses.mean() if self._relative else losses.sum()

    def clear(self) -> None:
        self._losses.clear()


@torch.no_grad()
def _scale(layer: Norm) -> float:
    """Return the size of a layer's running statistics: ‖var‖₂ + ‖√var‖₂."""
    assert layer.running_var is not None
    var = layer.running_var.double()
    return max((var.norm() + var.sqrt().norm()).item(), 1e-12)


def _measuring(network: nn.Module, losses: _Losses) -> nn.Module:
    """Return a module that computes what `network` does, adds to `losses`, and shares its parameters."""
    traced = trace(network)
    if traced is not None:
        return _rewritten(traced, losses)
    copied = sharing_tensors(network)
    layers = [(path, layer) for path, layer in copied.named_modules() if measures(layer)]
    for path, layer in layers:
        kind = MeasuredInstanceNorm if is_instance_norm(layer) else FusedBatchNorm
        layer.forward = kind(layer, on_loss=losses.of(path, layer)).forward
    return copied


def _rewritten(traced: fx.GraphModule, losses: _Losses) -> fx.GraphModule:
    for node in list(traced.graph.nodes):
        layer = module_of(traced, node)
        if layer is None or not measures(layer):
            continue
        on_loss = losses.of(str(node.target), layer)
        if is_instance_norm(layer):
            replace(traced, node, MeasuredInstanceNorm(layer, on_loss))
            continue
        found = following_activation(traced, node) if is_plain(layer) else None
        last, fused = found or (None, None)
        replace(traced, node, FusedBatchNorm(layer, fused, on_loss), last)
    return finish(traced)
