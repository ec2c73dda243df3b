"""A teacher whose BatchNorms report the statistics of their inputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, fx, nn

from kernels.fuse.graph import finish, following_activation, module_of, replace, trace
from kernels.fuse.layers import FusedBatchNorm, sharing_tensors
from kernels.fuse.norms import has_statistics, is_plain, is_scripted, measures


class BatchNormStatistics:
    """The statistics losses of the forward passes since the last `take`."""

    def __init__(self) -> None:
        self._losses: list[tuple[str, Tensor]] = []

    def add(self, path: str, loss: Tensor) -> None:
        self._losses.append((path, loss))

    def paths(self) -> dict[str, bool]:
        """The layers that have run, by path in the network: whether all their losses have a gradient."""
        found: dict[str, bool] = {}
        for path, loss in self._losses:
            found[path] = found.get(path, True) and loss.requires_grad
        return found

    def take(self) -> Tensor:
        """Their sum, a scalar: sum over layers of ||var - running_var||_2 + ||mean - running_mean||_2.

        Raises RuntimeError if no BatchNorm with running statistics has run.
        """
        if not self._losses:
            raise RuntimeError(
                "no BatchNorm in eval mode with running statistics has run since the last take()"
            )
        total = torch.stack([loss for _, loss in self._losses]).sum()
        self.clear()
        return total

    def clear(self) -> None:
        self._losses.clear()


@contextmanager
def batch_norm_statistics(network: nn.Module) -> Iterator[BatchNormStatistics]:
    """Inside the block, `network(x)` runs each BatchNorm in eval mode, and the activation that alone uses
    its output, as one `kernels.bn_stats`, and what is yielded collects the losses.

    The layers stay where they are: inside the block the network's forward is that of a rewritten graph, or,
    where no graph can be had (see `graph.trace`), each layer's own forward is replaced and activations stay
    separate. Whatever was replaced is put back at the end. Not thread-safe, as the network is shared.
    """
    statistics = BatchNormStatistics()
    traced = trace(network)
    replaced: list[tuple[nn.Module, nn.Module]]
    if traced is not None:
        replaced = [(network, _rewritten(traced, statistics))]
    else:
        replaced = _stand_ins(network, statistics)
    before = [vars(module).get("forward") for module, _ in replaced]
    try:
        for module, stand_in in replaced:
            module.forward = stand_in.forward
        yield statistics
    finally:
        for (module, _), own in zip(replaced, before, strict=True):
            vars(module).pop("forward", None)
            if own is not None:
                module.forward = own


def measured(network: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """x -> (network(x), sum of the statistics losses), with the layers as `batch_norm_statistics` runs them.

    `network`, in eval mode, is traced once and never changed, so that another thread may run it meanwhile;
    its parameters are shared. Where no graph can be had, layers of a copy of its modules are replaced.
    """
    statistics = BatchNormStatistics()
    own = _measuring(network, statistics)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        statistics.clear()  # those of a pass that failed
        return own(x), statistics.take()

    return forward


def coverage(network: nn.Module, x: Tensor) -> tuple[dict[str, bool], list[str]]:
    """What of `network`, in eval mode, `measured(network)` measures in its pass over x.

    Returns the measured layers by path, with whether their losses have a gradient, and the paths of the
    layers with running statistics that run and are not measured. Layers that do not run, such as those of an
    auxiliary head, are in neither. Of TorchScript all count as run.
    """
    statistics = BatchNormStatistics()
    _measuring(network, statistics)(x)
    found = statistics.paths()
    watched, ran = sharing_tensors(network), set[str]()
    for path, layer in watched.named_modules():
        if has_statistics(layer):
            if is_scripted(layer):
                ran.add(path)
            else:
                layer.register_forward_hook(lambda *_, path=path: ran.add(path))
    with torch.no_grad():
        watched(x)
    return found, [path for path, _ in watched.named_modules() if path in ran and path not in found]


def _measuring(network: nn.Module, statistics: BatchNormStatistics) -> nn.Module:
    traced = trace(network)
    if traced is not None:
        return _rewritten(traced, statistics)
    own = sharing_tensors(network)
    for layer, stand_in in _stand_ins(own, statistics):
        layer.forward = stand_in.forward
    return own


def _stand_ins(network: nn.Module, statistics: BatchNormStatistics) -> list[tuple[nn.Module, nn.Module]]:
    """Each BatchNorm that measures, with the layer whose forward is to take the place of its own."""
    layers = [(path, layer) for path, layer in network.named_modules() if measures(layer)]
    return [(layer, FusedBatchNorm(layer, on_loss=partial(statistics.add, path))) for path, layer in layers]


def _rewritten(traced: fx.GraphModule, statistics: BatchNormStatistics) -> fx.GraphModule:
    for node in list(traced.graph.nodes):
        layer = module_of(traced, node)
        if layer is None or not measures(layer):
            continue
        found = following_activation(traced, node) if is_plain(layer) else None
        last, fused = found or (None, None)
        on_loss = partial(statistics.add, str(node.target))
        replace(traced, node, FusedBatchNorm(layer, fused, on_loss), last)
    return finish(traced)
