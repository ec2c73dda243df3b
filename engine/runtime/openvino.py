"""The OpenVINO runtime, for CPUs: static shapes, requests side by side, bf16 where the processor has it.

A network is compiled once for each shape of its other axes, for chunks of the batch's tuned size; the
compiled model is kept in the store.
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
from engine.runtime import small_maps
from engine.runtime.artifacts import Graph
from engine.runtime.place import Place
from engine.runtime.profile import check_sizes, pieces, rows, with_fixed_batch
from export.errors import RuntimeUnavailableError
from export.fingerprint import files_hash
from export.spec import NetworkSpec, Precision
from export.store import Key

if TYPE_CHECKING:
    from openvino import AsyncInferQueue, CompiledModel, Core, InferRequest

DEVICE = "CPU"
HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
BLOB = "model.blob"


def version() -> str:
    """What compiled models depend on besides their graph."""
    name = core().get_property(DEVICE, "FULL_DEVICE_NAME").strip()
    code = files_hash((__file__, small_maps.__file__))[:12]
    return f"openvino {metadata.version('openvino')} on {name}, code {code}"


def require_precision(precision: Precision) -> None:
    """Raises RuntimeUnavailableError for one that it does not have."""
    if precision not in HINTS:
        raise RuntimeUnavailableError(
            f"openvino computes in {' or '.join(HINTS)} on a CPU, not in {precision}; take one of them"
        )


class OpenVinoExecutable:
    """Runs a graph in fp32, whatever precision the place asks of its arithmetic.

    Raises RuntimeUnavailableError where the processor cannot compute in that.
    """

    def __init__(self, spec: NetworkSpec, graph: Graph, place: Place) -> None:
        require_precision(place.precision)
        self._spec, self._graph = with_fixed_batch(spec), graph
        self._precision, self._threads, self._store = place.precision, place.threads, place.store
        self._queues: dict[tuple[tuple[int, ...], ...], AsyncInferQueue] = {}

    @property
    def description(self) -> str:
        return version()

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        check_sizes(self._spec, inputs)
        count = rows(self._spec, inputs)
        parts = [
            {name: np.ascontiguousarray(value.numpy(), np.float32) for name, value in part.items()}
            for part in pieces(self._spec, inputs)
        ]
        queue = self._queue(tuple(parts[0][given.name].shape for given in self._spec.inputs))
        found: list[list[Any]] = [[] for _ in parts]

        def keep(request: InferRequest, place: int) -> None:
            found[place] = [tensor.data.copy() for tensor in request.output_tensors]

        queue.set_callback(keep)
        for place, part in enumerate(parts):
            queue.start_async(part, place, share_inputs=True)
        queue.wait_all()
        return self._spec.named(
            torch.from_numpy(np.concatenate(pieces))[:count] for pieces in zip(*found, strict=True)
        )

    def _queue(self, shapes: tuple[tuple[int, ...], ...]) -> AsyncInferQueue:
        if shapes not in self._queues:
            import openvino

            self._queues[shapes] = openvino.AsyncInferQueue(self._compiled(shapes))
        return self._queues[shapes]

    def _compiled(self, shapes: tuple[tuple[int, ...], ...]) -> CompiledModel:
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": HINTS[self._precision],
            "INFERENCE_NUM_THREADS": self._threads,
            # each compiled model would pin its threads to the first cores, beside those of the others
            "ENABLE_CPU_PINNING": self._threads >= available_cores(),
        }

        def build(folder: Path) -> None:
            model = core().read_model(self._graph.path)
            model.reshape({given.name: list(s) for given, s in zip(self._spec.inputs, shapes, strict=True)})
            small_maps.write_out_small_maps(model)
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
                f"{self._spec.name}: openvino was asked for {wanted} and computes in {used} here; "
                "take --precision fp32"
            )


@cache
def core() -> Core:
    """The process's only one, never freed.

    The CPU plugin registers an alternate signal stack and unmaps it when its Core ends; with two that end in
    their order the unmapped one stays registered, and Ctrl-C is a segmentation fault.
    """
    import openvino

    return openvino.Core()
