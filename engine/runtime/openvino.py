"""The OpenVINO runtime, for CPUs: static shapes, parallel requests, bf16 if the processor has it.

A network is compiled once for each shape of its other axes, for chunks of the batch's tuned size. The store
keeps the compiled model.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine.hardware import available_cores
from engine.runtime.artifacts import Graph
from engine.runtime.base import RuntimeOptions, refusals
from engine.runtime.batching import check_sizes, pieces, rows, with_fixed_batch
from export.errors import RuntimeUnavailableError
from export.fingerprint import files_hash
from export.spec import NetworkSpec, Precision
from export.store import Key

if TYPE_CHECKING:
    from openvino import AsyncInferQueue, CompiledModel, Core, InferRequest, Model, Node

DEVICE = "CPU"
HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
BLOB = "model.blob"
SMALL_MAP = 64
"""Maximum pixels of a map whose per-channel constants are expanded; larger ones are not faster."""


def version() -> str:
    """Return the version, the processor and the hash of this code: compiled models depend on them, too."""
    name = core().get_property(DEVICE, "FULL_DEVICE_NAME").strip()
    code = files_hash((__file__,))[:12]
    return f"openvino {metadata.version('openvino')} on {name}, code {code}"


def require_precision(precision: Precision) -> None:
    """Raise RuntimeUnavailableError if OpenVINO lacks the precision on a CPU."""
    if precision not in HINTS:
        raise RuntimeUnavailableError(
            f"openvino computes in {' or '.join(HINTS)} on a CPU, not in {precision}; choose one of them"
        )


class OpenVinoExecutable:
    """Run an fp32 graph, with arithmetic in the precision of the options.

    Raises RuntimeUnavailableError if the processor cannot compute in that precision.
    """

    def __init__(self, spec: NetworkSpec, graph: Graph, options: RuntimeOptions) -> None:
        require_precision(options.precision)
        self._spec, self._graph = with_fixed_batch(spec), graph
        self._precision, self._threads, self._store = options.precision, options.threads, options.store
        self._queues: dict[tuple[tuple[int, ...], ...], AsyncInferQueue] = {}

    @property
    def description(self) -> str:
        return version()

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        check_sizes(self._spec, inputs)
        count = rows(self._spec, inputs)
        batches = [
            {name: np.ascontiguousarray(value.numpy(), np.float32) for name, value in piece.items()}
            for piece in pieces(self._spec, inputs)
        ]
        queue = self._queue(tuple(batches[0][given.name].shape for given in self._spec.inputs))
        outputs: list[list[Any]] = [[] for _ in batches]

        def keep(request: InferRequest, index: int) -> None:
            outputs[index] = [tensor.data.copy() for tensor in request.output_tensors]

        queue.set_callback(keep)
        for index, batch in enumerate(batches):
            queue.start_async(batch, index, share_inputs=True)
        queue.wait_all()
        return self._spec.named(
            torch.from_numpy(np.concatenate(rows_of))[:count] for rows_of in zip(*outputs, strict=True)
        )

    def _queue(self, shapes: tuple[tuple[int, ...], ...]) -> AsyncInferQueue:
        if shapes not in self._queues:
            import openvino

            with refusals(self._spec.name, "openvino"):
                self._queues[shapes] = openvino.AsyncInferQueue(self._compiled(shapes))
        return self._queues[shapes]

    def _compiled(self, shapes: tuple[tuple[int, ...], ...]) -> CompiledModel:
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": HINTS[self._precision],
            "INFERENCE_NUM_THREADS": self._threads,
            # every compiled model would pin its threads to the same first cores
            "ENABLE_CPU_PINNING": self._threads >= available_cores(),
        }

        def build(folder: Path) -> None:
            model = core().read_model(self._graph.path)
            model.reshape({given.name: list(s) for given, s in zip(self._spec.inputs, shapes, strict=True)})
            expand_small_maps(model)
            compiled = core().compile_model(model, DEVICE, options)
            (folder / BLOB).write_bytes(compiled.export_model().getvalue())

        parts = {
            "graph": self._graph.digest,
            "shapes": repr(shapes),
            "builder": version(),
            "options": repr(options),
        }
        key = Key(network=self._spec.name, kind="openvino", precision=self._precision, parts=parts)
        blob = self._store.read(self._store.get(key, build), BLOB)
        compiled = core().import_model(blob, DEVICE, options)
        self._check_precision(compiled)
        return compiled

    def _check_precision(self, compiled: CompiledModel) -> None:
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        wanted = HINTS[self._precision]
        if used != wanted:
            raise RuntimeUnavailableError(
                f"{self._spec.name}: openvino should compute in {wanted} but computes in {used} on this"
                " processor; use --precision fp32"
            )


@cache
def core() -> Core:
    """Return the only Core of the process, which is never freed.

    The CPU plugin registers an alternate signal stack and unmaps it when its Core is freed. If two Cores are
    freed in the order of their creation, an unmapped stack stays registered and Ctrl-C causes a segmentation
    fault.
    """
    import openvino

    return openvino.Core()


def expand_small_maps(model: Model) -> None:
    """Expand per-channel scales and shifts of small feature maps to one value per pixel, in place.

    OpenVINO iterates over single maps if the constant is broadcast, and a map of 16 pixels is just one
    vector. With a value for every pixel, it processes the whole sample as one row. The arithmetic and its
    order stay the same. `model` must have static shapes.
    """
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Multiply", "Add") or not _is_small_map(node):
            continue
        shape = list(node.get_output_shape(0))
        for index in (0, 1):
            constant = node.input_value(index).get_node()
            if _is_per_channel(constant, shape[1]):
                values = np.asarray(constant.data).reshape(1, shape[1], 1, 1)
                expanded = np.broadcast_to(values, (1, *shape[1:])).copy()
                node.input(index).replace_source_output(opset13.constant(expanded).output(0))
    model.validate_nodes_and_infer_types()


def _is_small_map(node: Node) -> bool:
    shape = node.get_output_shape(0)
    return len(shape) == 4 and shape[2] * shape[3] <= SMALL_MAP


def _is_per_channel(node: Node, channels: int) -> bool:
    if node.get_type_name() != "Constant":
        return False
    shape = list(node.get_output_shape(0))
    return shape[-2:] == [1, 1] and int(np.prod(shape)) == channels
