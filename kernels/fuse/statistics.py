"""A teacher whose BatchNorms report the statistics of their inputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from kernels.fuse.graph import (
    finish,
    following_activation,
    is_plain,
    measures,
    module_of,
    replace,
    trace,
)
from kernels.fuse.layers import FusedBatchNorm, sharing_tensors


class BatchNormStatistics:
    """The statistics losses of the forward passes since the last `take`."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        self._losses.append(loss)

    def take(self) -> Tensor:
        """Their sum, a scalar: sum over layers of ||var - running_var||_2 + ||mean - running_mean||_2.

        Raises RuntimeError where no BatchNorm2d with running statistics has run.
        """
        if not self._losses:
            raise RuntimeError(
                "no BatchNorm2d in eval mode with running statistics has run since the last take()"
            )
        total = torch.stack(self._losses).sum()
        self.clear()
        return total

    def clear(self) -> None:
        self._losses.clear()


@contextmanager
def batch_norm_statistics(network: nn.Module) -> Iterator[BatchNormStatistics]:
    """Inside the block, `network(x)` runs each BatchNorm2d in eval mode, and the activation that alone uses
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
    traced = trace(network)
    own = sharing_tensors(network) if traced is None else _rewritten(traced, statistics)
    if traced is None:
        for layer, stand_in in _stand_ins(own, statistics):
            layer.forward = stand_in.forward

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        statistics.clear()  # those of a pass that failed
        return own(x), statistics.take()

    return forward


def _stand_ins(network: nn.Module, statistics: BatchNormStatistics) -> list[tuple[nn.Module, nn.Module]]:
    """Each BatchNorm2d that measures, with the layer whose forward is to take the place of its own."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d) and measures(layer)]
    return [(layer, FusedBatchNorm(layer, on_loss=statistics.add)) for layer in layers]


def _rewritten(traced: fx.GraphModule, statistics: BatchNormStatistics) -> fx.GraphModule:
    for node in list(traced.graph.nodes):
        layer = module_of(traced, node)
        if not isinstance(layer, nn.BatchNorm2d) or not measures(layer):
            continue
        found = following_activation(traced, node) if is_plain(layer) else None
        last, fused = found or (None, None)
        replace(traced, node, FusedBatchNorm(layer, fused, statistics.add), last)
    return finish(traced)
