"""Choose the batch sizes of a network, and split a batch of any size into pieces that an engine takes."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from engine.config.compute import Runtime
from export.errors import ExportError
from export.spec import Axis, Input, NetworkSpec

CPU_CHUNK = 32
"""Maximum rows of one request on a CPU. More are not faster, because activations then leave the cache."""
CPU_REQUESTS = 2
"""Minimum number of requests in a full call. They run in parallel, each on some of the cores."""


def batch_sizes(runtime: Runtime, rows: int) -> tuple[int, int, int]:
    """Return the (min, tuned, max) rows of a network that gets up to `rows` per call."""
    tuned = min(-(-rows // CPU_REQUESTS), CPU_CHUNK) if runtime == "openvino" else rows
    return 1, tuned, rows


def with_fixed_batch(spec: NetworkSpec, size: int | None = None) -> NetworkSpec:
    """Return the network for batches of exactly `size` rows, by default the tuned size."""
    size = size or spec.axes()["batch"].opt
    fixed = Axis(name="batch", min=size, opt=size, max=size)

    def with_fixed_axis(given: Input) -> Input:
        is_batched = isinstance(first := given.shape[0], Axis) and first.name == "batch"
        return replace(given, shape=(fixed, *given.shape[1:])) if is_batched else given

    return replace(spec, inputs=tuple(map(with_fixed_axis, spec.inputs)))


def check_sizes(spec: NetworkSpec, inputs: Mapping[str, Tensor]) -> None:
    """Raise ExportError if a size is out of its range; the batch may have any size."""
    if inputs.keys() != {given.name for given in spec.inputs}:
        raise ValueError(f"{spec.name}: got inputs {sorted(inputs)}")
    for given in spec.inputs:
        shape = list(inputs[given.name].shape)
        if len(shape) != len(given.shape) or not all(map(_fits, shape, given.shape)):
            raise ExportError(
                f"{spec.name}: input {given.name} has shape {shape}, but its engine takes"
                f" [{_describe(given)}]; resize the images, or export the network for other sizes"
            )


def pieces(spec: NetworkSpec, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Split the inputs into batches that the engine takes; repeat the last row of one that is too small.

    `join` drops the outputs for the padding.
    """
    batch = spec.axes()["batch"]
    batched = {given.name for given in spec.inputs if given.shape[0] == batch}
    for begin, end, size in ranges(rows(spec, inputs), batch):
        yield {
            name: _padded(value[begin:end], size) if name in batched else value
            for name, value in inputs.items()
        }


def join(spec: NetworkSpec, outputs: list[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    """Concatenate the outputs of all pieces; return the first `count` rows."""
    if len(outputs) == 1:
        return {name: outputs[0][name][:count] for name in spec.outputs}
    return {name: torch.cat([piece[name] for piece in outputs])[:count] for name in spec.outputs}


def rows(spec: NetworkSpec, inputs: Mapping[str, Tensor]) -> int:
    """Return the size of the batch. Raises ValueError if the inputs disagree."""
    batch = spec.axes()["batch"]
    sizes = {len(inputs[given.name]) for given in spec.inputs if given.shape[0] == batch}
    if len(sizes) != 1:
        raise ValueError(f"{spec.name}: inputs have {sorted(sizes)} rows")
    return sizes.pop()


def ranges(rows: int, batch: Axis) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, size after padding) of each piece."""
    for begin in range(0, rows, batch.max):
        end = min(begin + batch.max, rows)
        yield begin, end, max(end - begin, batch.min)


def _fits(size: int, wanted: int | Axis) -> bool:
    if isinstance(wanted, int):
        return size == wanted
    if wanted.name == "batch":
        return size > 0
    return wanted.min <= size <= wanted.max and size % wanted.multiple == 0


def _describe(given: Input) -> str:
    return ", ".join(map(_describe_axis, given.shape))


def _describe_axis(axis: int | Axis) -> str:
    if isinstance(axis, int):
        return str(axis)
    if axis.name == "batch":
        return "batch"
    if axis.min == axis.max:
        return str(axis.min)
    steps = f" in steps of {axis.multiple}" if axis.multiple > 1 else ""
    return f"{axis.name} {axis.min} to {axis.max}{steps}"


def _padded(rows: Tensor, size: int) -> Tensor:
    """Repeat the last row up to `size` rows; keep the memory format, on which compiled networks depend."""
    missing = size - len(rows)
    if not missing:
        return rows
    padded = torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
    if rows.ndim == 4 and not rows.is_contiguous():
        return padded.contiguous(memory_format=torch.channels_last)
    return padded
