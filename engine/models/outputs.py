"""Find the logits in a network's output, and check that they are logits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.config.classifier import ONE_LOGIT, ClassifierConfig
from engine.errors import UserError

EntryPath = tuple[Any, ...]
"""Keys and indices that lead from a network's output to one tensor; empty if the output is the tensor."""

SUM_TOLERANCE = 1e-3
"""Maximum deviation of a sum of probabilities from 1, as fp16 and bf16 round."""
_SIGMOIDS = (torch.ops.aten.sigmoid, torch.ops.aten.sigmoid_, torch.ops.aten.hardsigmoid)


def logits_path(output: object, config: ClassifierConfig, section: str, batch: int) -> EntryPath:
    """Return the path in `output` to floats [batch, num_classes]: `config.output`, or the only such entry.

    Raises a UserError that names the field of `section` if there is no such entry, or if there are several.
    """
    found = {name: (path, tensor) for name, path, tensor in entries(output)}
    if config.output is not None:
        name = str(config.output)
        if not name or name not in found:
            remedy = "; set it to null" if "" in found else ""
            raise UserError(
                f"{section}.output is '{name}', but {config.name} returns {described(output)}{remedy}"
            )
        found = {name: found[name]}
    shape = (batch, config.num_classes)
    fitting = {
        name: path
        for name, (path, tensor) in found.items()
        if tensor.shape == shape and tensor.is_floating_point()
    }
    if not fitting:
        _require_classifier([(name, tensor) for name, (_, tensor) in found.items()], config, section)
        is_single = any(tensor.shape == (batch, 1) for _, tensor in found.values())
        raise UserError(
            f"{section}.num_classes is {config.num_classes}, but {config.name} returns {described(output)} "
            f"for {batch} images{f'; {ONE_LOGIT}' if is_single else ''}"
        )
    if len(fitting) > 1:
        raise UserError(
            f"{section}.output is not set, and several entries of the output of {config.name} may be "
            f"the logits: {described(output)}; name one, e.g. --{section}.output {next(iter(fitting))}"
        )
    return next(iter(fitting.values()))


def _require_classifier(found: Sequence[tuple[str, Tensor]], config: ClassifierConfig, section: str) -> None:
    """Raise UserError that names `section`.name if the tensors are those of detection or segmentation."""
    boxes = [name for name, _ in found if "boxes" in name.rpartition(".")[2]]
    maps = [
        (name, tensor) for name, tensor in found if tensor.ndim == 4 and config.num_classes in tensor.shape
    ]
    if boxes:
        what = f"returns `{boxes[0]}`, as a detection network does"
    elif maps:
        what = f"returns {_named(*maps[0])}, a map of logits, as a segmentation network does"
    else:
        return
    raise UserError(
        f"{section}.name: {config.name} {what}, but the engine distills classifiers; write a factory that "
        f"returns [B, {config.num_classes}] logits, such as a map's average over its positions"
    )


def entry(output: Any, path: EntryPath) -> Any:
    """Return the part of `output` at `path`."""
    for key in path:
        output = output[key]
    return output


def require_logits(
    logits: Tensor, repeat: Callable[[], Tensor], config: ClassifierConfig, section: str
) -> None:
    """Refuse probabilities [B, num_classes] of several images; `repeat` runs the network again.

    Log-probabilities are logits. Raises a UserError that names `section`.name.
    """
    if (logits >= 0).all() and ((logits.sum(1) - 1).abs() <= SUM_TOLERANCE).all():
        raise UserError(
            f"{section}.name: {config.name} ends in a softmax (all outputs are at least 0 and add up to 1), "
            "but its logits are needed; return them without the softmax, or with log_softmax instead"
        )
    if (logits >= 0).all() and (logits <= 1).all() and _is_from_sigmoid(logits, repeat):
        raise UserError(
            f"{section}.name: {config.name} ends in a sigmoid (all outputs are in [0, 1]), but logits are "
            "needed; return them without the sigmoid"
        )


def is_constant(logits: Tensor) -> bool:
    """Return whether all rows of [B, num_classes] are the same up to rounding."""
    return bool((logits - logits[:1]).abs().max() <= 1e-6 * logits.abs().max())


def _is_from_sigmoid(logits: Tensor, repeat: Callable[[], Tensor]) -> bool:
    """Return whether a sigmoid computed the logits; those of few classes may lie in [0, 1] by chance."""
    results: list[Tensor] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket in _SIGMOIDS and result.shape == logits.shape:
                results.append(result.detach().clone())
            return result

    with Watch():
        repeat()
    return any(torch.allclose(result.float(), logits.float(), atol=1e-4) for result in results)


def entries(
    output: object, names: tuple[str, ...] = (), path: EntryPath = ()
) -> Iterator[tuple[str, EntryPath, Tensor]]:
    """Yield (dotted name, path, tensor) for every tensor in nested mappings, lists and tuples."""
    if isinstance(output, Tensor):
        yield ".".join(names), path, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from entries(value, (*names, str(key)), (*path, key))
    elif isinstance(output, list | tuple):
        fields = getattr(output, "_fields", range(len(output)))  # of a named tuple
        for index, (name, value) in enumerate(zip(fields, output, strict=True)):
            yield from entries(value, (*names, str(name)), (*path, index))


def described(output: object) -> str:
    """List the names and shapes of the tensors in an output."""
    return ", ".join(_named(name, tensor) for name, _, tensor in entries(output)) or type(output).__name__


def _named(name: str, tensor: Tensor) -> str:
    return f"`{name}` {_shape(tensor)}" if name else _shape(tensor)


def _shape(tensor: Tensor) -> str:
    dtype = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"{list(tensor.shape)}{dtype}"
