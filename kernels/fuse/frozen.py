"""Make a frozen network fast: fold BatchNorms into convolutions, or fuse them with their activations."""

import copy
from collections.abc import Sequence

import torch
from torch import fx, nn

from kernels.fuse.graph import finish, following_activation, module_of, replace, trace
from kernels.fuse.layers import FusedBatchNorm, folded_conv, frozen_copy
from kernels.fuse.norms import Norm, is_batch_norm, is_plain, is_timm_batch_norm_act, measures


def fuse_frozen(
    network: nn.Module,
    feature_paths: Sequence[str],
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.channels_last,
) -> nn.Module | None:
    """Return a fused copy of `network` as it is now: x -> (output, features).

    The features are a list of the outputs of the submodules at `feature_paths`. `network` must be in eval
    mode. Gradients flow to x only. A BatchNorm that is the only user of the output of a convolution is folded
    into it. Any other BatchNorm is fused with the activation that is the only user of its output.
    Convolutions and linear layers hold their weights in `dtype`, for use under autocast to it, and 4-d
    weights in `memory_format`. Returns None if `network` cannot be traced.
    """
    traced = trace(network, feature_paths)
    if traced is None:
        return None
    traced = copy.deepcopy(traced).requires_grad_(False)
    for node in list(traced.graph.nodes):
        layer = module_of(traced, node)
        if layer is None or not (is_batch_norm(layer) and measures(layer)) or _fold(traced, node, layer):
            continue
        if is_plain(layer) or is_timm_batch_norm_act(layer):
            _fuse(traced, node, layer)
    for node in list(traced.graph.nodes):
        layer = module_of(traced, node)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            replace(traced, node, frozen_copy(layer, dtype, memory_format))
    return finish(traced)


def _fold(traced: fx.GraphModule, node: fx.Node, layer: Norm) -> bool:
    """Fold `layer` into the convolution before it, and return whether that was possible."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    conv = module_of(traced, source)
    if type(conv) is not nn.Conv2d or len(source.users) != 1 or not is_plain(layer):
        return False
    replace(traced, source, folded_conv(conv, layer), node)
    return True


def _fuse(traced: fx.GraphModule, node: fx.Node, layer: Norm) -> None:
    found = following_activation(traced, node) if is_plain(layer) else None
    last, fused = found or (None, None)
    replace(traced, node, FusedBatchNorm(layer, fused), last)
