"""One forward pass that also returns inner activations; no hook outlives the call."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.errors import UserError


@contextmanager
def _attached(handles: list[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path. Raises UserError that names the path and its nearest existing part."""
    found = module
    for depth, name in enumerate(path.split(".")):
        children = dict(found.named_children())
        if name not in children:
            parent = ".".join(path.split(".")[:depth]) or type(module).__name__
            names = ", ".join(children) or "none"
            raise UserError(
                f"no submodule '{path}' in {type(module).__name__}; the children of {parent} are: {names}"
            )
        found = children[name]
    return found


def forward_with_features(
    module: nn.Module, images: Tensor, paths: Iterable[str]
) -> tuple[Tensor, list[Tensor]]:
    """`module(images)` and the outputs of the submodules at `paths`, in that order, as they returned them.

    Raises UserError for a path that does not exist, that the forward pass did not run or that does not give
    a tensor.
    """
    features: dict[str, Tensor] = {}
    wanted = list(paths)

    def keep(path: str) -> Callable[[nn.Module, object, object], None]:
        def copy(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise UserError(
                    f"submodule '{path}' of {type(module).__name__} gives a {type(output).__name__}, not a "
                    "tensor; name a layer that gives one"
                )
            features[path] = output.clone()  # an operation in place may follow

        return copy

    layers = [submodule(module, path) for path in wanted]  # all found before the first hook is attached
    handles = [layer.register_forward_hook(keep(path)) for layer, path in zip(layers, wanted, strict=True)]
    with _attached(handles):
        output = module(images)
    missing = [path for path in wanted if path not in features]
    if missing:
        raise UserError(
            f"submodule '{missing[0]}' of {type(module).__name__} did not run in the forward pass"
        )
    return output, [features[path] for path in wanted]
