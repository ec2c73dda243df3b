"""Run a forward pass that also returns intermediate activations, and bring them to [B, C, h, w]."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.errors import UserError


class FeatureLayout(NamedTuple):
    """How a network lays out its feature map, with its height and width.

    nchw is [B, C, h, w], nhwc is [B, h, w, C], and tokens is [B, prefix + h * w, C], row by row.
    """

    order: Literal["nchw", "nhwc", "tokens"]
    grid: tuple[int, int]
    prefix: int = 0


def to_nchw(feature: Tensor, layout: FeatureLayout | None) -> Tensor:
    """Return a feature in `layout` as [B, C, h, w]; with None, return it as it is."""
    if layout is None or layout.order == "nchw":
        return feature
    if layout.order == "nhwc":
        return feature.permute(0, 3, 1, 2)
    return feature[:, layout.prefix :].transpose(1, 2).unflatten(2, layout.grid)


def submodule(module: nn.Module, path: str) -> nn.Module:
    """Return the submodule at a dotted path. Raises a UserError that names the last part that exists."""
    current = module
    for depth, name in enumerate(path.split(".")):
        children = dict(current.named_children())
        if name not in children:
            parent = ".".join(path.split(".")[:depth]) or type(module).__name__
            names = ", ".join(children) or "none"
            raise UserError(
                f"no submodule '{path}' in {type(module).__name__}; the children of {parent} are: {names}"
            )
        current = children[name]
    return current


def forward_with_features(
    module: nn.Module, images: Tensor, paths: Iterable[str]
) -> tuple[Tensor, list[Tensor]]:
    """Return `module(images)` and the outputs of the submodules at `paths`, in that order, as they are.

    The hooks are removed afterwards.
    Raises UserError for a path that does not exist, did not run, or does not return a tensor.
    """
    features: dict[str, Tensor] = {}
    wanted = list(paths)

    def keep(path: str) -> Callable[[nn.Module, object, object], None]:
        def copy(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise UserError(
                    f"submodule '{path}' of {type(module).__name__} returns a {type(output).__name__}, not a "
                    "tensor; name a layer that returns one"
                )
            features[path] = output.clone()  # an in-place operation may follow

        return copy

    layers = [submodule(module, path) for path in wanted]  # all exist before the first hook is attached
    handles = [layer.register_forward_hook(keep(path)) for layer, path in zip(layers, wanted, strict=True)]
    with _attached(handles):
        output = module(images)
    missing = [path for path in wanted if path not in features]
    if missing:
        raise UserError(
            f"submodule '{missing[0]}' of {type(module).__name__} did not run in the forward pass"
        )
    return output, [features[path] for path in wanted]


@contextmanager
def _attached(handles: list[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
