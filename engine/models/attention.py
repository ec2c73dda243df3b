"""Find the submodules of a network that compute self-attention, by running it."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kernels.fuse import is_scripted

_SOFTMAXES = (F.softmax, torch.softmax, Tensor.softmax)


def attention_paths(network: nn.Module, images: Tensor) -> list[str]:
    """Return the paths of the submodules of `network` that compute self-attention for images [B, 3, H, W].

    Such a submodule calls scaled dot-product attention, or a softmax over a matrix with a row for each token,
    and returns the tokens by `attention_output`: [B', N, D] or [B', h, w, D], for whole images or windows of
    them. The paths are in the order in which the submodules end.
    """
    watch = _Watch()
    handles = []
    for path, module in network.named_modules():
        if not is_scripted(module):
            handles.append(module.register_forward_pre_hook(lambda *_, path=path: watch.begin(path)))
            handles.append(module.register_forward_hook(watch.end))
    try:
        with watch:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(watch.found))


def attention_output(module: nn.Module, output: Any) -> Any:
    """Return the tokens in what an attention module returns, [B', N, D] or [B', h, w, D]."""
    tokens = output[0] if isinstance(output, tuple | list) and output else output
    if isinstance(module, nn.MultiheadAttention) and not module.batch_first and isinstance(tokens, Tensor):
        return tokens.transpose(0, 1)
    return tokens


class _Queries(NamedTuple):
    """The queries of an attention: of a row, of all rows, and its heads."""

    length: int
    total: int
    heads: int


class _Watch(TorchFunctionMode):
    """Notes for each open submodule the attention inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[tuple[str, set[_Queries]]] = []

    def begin(self, path: str) -> None:
        self._open.append((path, set()))

    def end(self, module: nn.Module, _inputs: object, output: object) -> None:
        path, queries = self._open.pop()
        has_tokens = _has_tokens(attention_output(module, output), queries)
        if path and has_tokens and not isinstance(module, nn.Softmax):
            self.found.append(path)
        elif self._open:
            self._open[-1][1].update(queries)  # the module around may return the tokens

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        queries = _queries(func, args, kwargs)
        if self._open and queries is not None and queries.length > 1:
            self._open[-1][1].add(queries)
        return func(*args, **kwargs)


def _queries(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Queries | None:
    """Return the queries of a call, or None if `func` is no attention."""
    first: Any = args[0] if args else kwargs.get("query", kwargs.get("input"))
    if func is F.multi_head_attention_forward:
        return _Queries(first.shape[0], first.shape[:2].numel(), 1)
    if func in _SOFTMAXES:
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        is_matrix = first.ndim > 3 or (first.ndim == 3 and first.shape[1] == first.shape[2])
        if dim not in (-1, first.ndim - 1) or not is_matrix:
            return None
    elif func is not F.scaled_dot_product_attention:
        return None
    heads = first.shape[1] if first.ndim == 4 else 1
    return _Queries(first.shape[-2], first.shape[:-1].numel() // heads, heads)


def _has_tokens(output: object, queries: set[_Queries]) -> bool:
    """Return whether `output` is [B', N, D] or [B', h, w, D] with no more positions than queries."""
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        return False
    if output.ndim == 4 and {query.length for query in queries} & set(output.shape[1:3]):
        return False  # [B', heads, N, D]
    positions, width = output.shape[:-1].numel(), output.shape[-1]
    return any(
        positions <= query.total  # fewer if windows are padded
        and (
            width != query.heads * query.length or positions % query.length == 0
        )  # the channels are no queries
        for query in queries
    )
