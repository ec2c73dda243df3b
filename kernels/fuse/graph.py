"""Trace a network into a torch.fx graph, find the activations to fuse, and replace nodes."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from kernels.bn_stats import Activation
from kernels.fuse.norms import is_batch_norm, normalizes_by_statistics

M = TypeVar("M", bound=nn.Module)

_FUNCTIONS: dict[Any, Activation] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
    F.relu6: "relu6",
    F.leaky_relu: "leaky_relu",
    F.silu: "silu",
}
_MODULES: dict[type[nn.Module], Activation] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
}


@dataclass(frozen=True)
class Fused:
    """An activation that the ops support, with its setting."""

    activation: Activation = "none"
    negative_slope: float = 0.01


def fused_module(module: nn.Module) -> Fused | None:
    """Return the activation that `module` computes, or None if the ops do not support it."""
    activation = _MODULES.get(type(module))
    if activation is None:
        return None
    return Fused(activation, getattr(module, "negative_slope", 0.01))


class _Tracer(fx.Tracer):
    """A tracer that enters modules of torch.nn only if a layer inside is measured, and all other modules.

    It keeps what the modules at `feature_paths` return.
    """

    def __init__(self, feature_paths: Sequence[str]) -> None:
        super().__init__()
        self.feature_paths, self.features = feature_paths, dict[str, Any]()

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        if is_batch_norm(module) or normalizes_by_statistics(module):
            return True
        inside = map(normalizes_by_statistics, module.modules())
        return super().is_leaf_module(module, path) and not any(inside)

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        output = super().call_module(module, forward, args, kwargs)
        path = self.path_of_module(module)
        if path in self.feature_paths:  # a copy, because an in-place operation may follow
            self.features[path] = output.clone() if isinstance(output, fx.Proxy) else output
        return output


def sharing_tensors(network: M) -> M:
    """Return a copy of the modules of `network` that shares their parameters and buffers."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def trace(network: nn.Module, feature_paths: Sequence[str] | None = None) -> fx.GraphModule | None:
    """Return the graph of `network`, which shares its tensors, or None if it cannot be traced.

    A copy is traced, as some networks, such as timm's LeViT, store in themselves what a pass computes.

    If `feature_paths` is not None, the graph returns (output, [outputs of the submodules at these paths]).

    A network cannot be traced if its control flow depends on values, if a forward is replaced on an instance,
    if there are hooks (a graph would not run them), if a measured layer is called by keyword, or if a
    submodule at `feature_paths` does not run. Context managers inside a forward are not recorded: the graph
    ignores autocast and computes gradients even inside torch.no_grad().
    """
    if any(_is_altered(module) for module in network.modules()):
        return None
    tracer = _Tracer(feature_paths or ())
    try:
        network = sharing_tensors(network)
        graph = tracer.trace(network)
    except Exception:  # anything that a foreign forward raises for symbolic values
        return None
    if feature_paths is not None:
        found = (tracer.features.get(path) for path in feature_paths)
        features = [proxy for proxy in found if isinstance(proxy, fx.Proxy)]
        if len(features) < len(feature_paths):
            return None
        output = next(node for node in graph.nodes if node.op == "output")
        output.args = ((output.args[0], [proxy.node for proxy in features]),)
    traced = fx.GraphModule(network, graph)
    norms = [node for node in graph.nodes if node.op == "call_module" and _is_norm(traced, node)]
    return traced if all(module_of(traced, node) is not None for node in norms) else None


def _is_norm(traced: fx.GraphModule, node: fx.Node) -> bool:
    layer = traced.get_submodule(str(node.target))
    return is_batch_norm(layer) or normalizes_by_statistics(layer)


def _is_altered(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or "forward" in vars(module)


def module_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that `node` calls with one tensor and nothing else, or None."""
    plain = node.op == "call_module" and len(node.args) == 1 and not node.kwargs
    return traced.get_submodule(str(node.target)) if plain and isinstance(node.args[0], fx.Node) else None


def following_activation(traced: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, Fused] | None:
    """Return the activation that is the only user of the output of `node`, or None."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if user.args[:1] != (node,):
        return None
    module = module_of(traced, user)
    if module is not None:
        fused = fused_module(module)
        return None if fused is None else (user, fused)
    activation = _FUNCTIONS.get(user.target) if user.op in ("call_function", "call_method") else None
    if activation is None:
        return None
    if activation != "leaky_relu":
        return user, Fused(activation)
    slope = user.kwargs.get("negative_slope", user.args[1] if len(user.args) > 1 else 0.01)
    return (user, Fused(activation, slope)) if isinstance(slope, float | int) else None


def replace(traced: fx.GraphModule, node: fx.Node, module: nn.Module, last: fx.Node | None = None) -> None:
    """Replace `node`, or the chain from `node` to `last`, with a call to `module`."""
    path = f"fused_{node.name}"
    traced.add_submodule(path, module)
    with traced.graph.inserting_before(node):
        new = traced.graph.call_module(path, node.args)
    (last or node).replace_all_uses_with(new)
    if last is not None:
        traced.graph.erase_node(last)
    traced.graph.erase_node(node)


def finish(traced: fx.GraphModule) -> fx.GraphModule:
    """Remove unused submodules, check the graph and compile its code."""
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()
    return traced
