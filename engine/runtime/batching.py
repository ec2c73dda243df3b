"""Batch sizes: the tuned ones, and how a batch of any size is split into pieces that an engine takes."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from engine.config.compute import Runtime
from export.errors import ExportError
from export.spec import Axis, Input, NetworkSpec

CPU_CHUNK = 32
"""Maximum rows of one request on a CPU; more are not faster, because the activations leave the cache."""
CPU_REQUESTS = 2
"""Minimum requests that a full call is split into; they run in parallel, each on a part of the cores."""


def batches(runtime: Runtime, rows: int) -> tuple[int, int, int]:
    """Return the (min, tuned, max) rows of a network that is called with up to `rows`."""
    tuned = min(-(-rows // CPU_REQUESTS), CPU_CHUNK) if runtime == "openvino" else rows
    return 1, tuned, rows


def with_fixed_batch(spec: NetworkSpec, size: int | None = None) -> NetworkSpec:
    """Return the same network for batches of exactly `size` rows, by default the tuned size."""
    size = size or spec.axes()["batch"].opt
    fixed = Axis(name="batch", min=size, opt=size, max=size)

    def of(given: Input) -> Input:
        is_batched = isinstance(first := given.shape[0], Axis) and first.name == "batch"
        return replace(given, shape=(fixed, *given.shape[1:])) if is_batched else given

    return replace(spec, inputs=tuple(map(of, spec.inputs)))


def check_sizes(spec: NetworkSpec, inputs: Mapping[str, Tensor]) -> None:
    """Raises ExportError if a size is out of its range; the batch may have any size."""
    if inputs.keys() != {given.name for given in spec.inputs}:
        raise ValueError(f"{spec.name}: inputs are {sorted(inputs)}")
    for given in spec.inputs:
        shape = list(inputs[given.name].shape)
        if len(shape) != len(given.shape) or not all(map(_fits, shape, given.shape)):
            raise ExportError(
                f"{spec.name}: input {given.name} has shape {shape}, its engine takes [{_range(given)}];"
                " resize the images, or export the network for other sizes"
            )


def pieces(spec: NetworkSpec, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the inputs in batches that the engine takes, padding one that is too small with its last row.

    `joined` drops the outputs of the padding.
    """
    batch = spec.axes()["batch"]
    batched = {given.name for given in spec.inputs if given.shape[0] == batch}
    for begin, end, size in ranges(rows(spec, inputs), batch):
        yield {
            name: _filled(value[begin:end], size) if name in batched else value
            for name, value in inputs.items()
        }


def joined(spec: NetworkSpec, parts: list[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    """Return the first `count` rows of the outputs of all pieces."""
    if len(parts) == 1:
        return {name: parts[0][name][:count] for name in spec.outputs}
    return {name: torch.cat([part[name] for part in parts])[:count] for name in spec.outputs}


def rows(spec: NetworkSpec, inputs: Mapping[str, Tensor]) -> int:
    """Return the size of the batch."""
    batch = spec.axes()["batch"]
    sizes = {len(inputs[given.name]) for given in spec.inputs if given.shape[0] == batch}
    if len(sizes) != 1:
        raise ValueError(f"{spec.name}: inputs of {sorted(sizes)} rows")
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


def _range(given: Input) -> str:
    return ", ".join(map(_in_words, given.shape))


def _in_words(axis: int | Axis) -> str:
    if isinstance(axis, int):
        return str(axis)
    if axis.name == "batch":
        return "batch"
    if axis.min == axis.max:
        return str(axis.min)
    steps = f" in steps of {axis.multiple}" if axis.multiple > 1 else ""
    return f"{axis.name} {axis.min} to {axis.max}{steps}"


def _filled(rows: Tensor, size: int) -> Tensor:
    """Repeat the last row up to `size` rows, in their memory format, on which compiled networks depend."""
    missing = size - len(rows)
    if not missing:
        return rows
    filled = torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
    if rows.ndim == 4 and not rows.is_contiguous():
        return filled.contiguous(memory_format=torch.channels_last)
    return filled
