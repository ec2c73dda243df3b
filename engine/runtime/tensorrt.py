"""The TensorRT runtime: engines on an NVIDIA GPU, on memory and streams of torch."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.atomic import replacing
from engine.runtime.batching import check_sizes, join, pieces, rows
from engine.runtime.torch import capture_cuda_graph
from export import locks
from export.errors import ExportError, RuntimeUnavailableError
from export.spec import NetworkSpec

if TYPE_CHECKING:
    import tensorrt as trt

MAX_GRAPHS = 4
"""Maximum number of CUDA graphs to keep; each has one set of shapes and its own memory."""
DIGEST_BYTES = hashlib.sha256().digest_size

Tensors = dict[str, Tensor]


def require_gpu() -> None:
    """Raise RuntimeUnavailableError if torch sees no CUDA device."""
    if not torch.cuda.is_available():
        raise RuntimeUnavailableError(
            "tensorrt: this machine has no GPU; it can build engines (python -m export --runtime tensorrt)"
            " but not run them; use a machine with an NVIDIA GPU, or --runtime openvino"
        )


class TensorRtExecutable:
    """Run the engine of `spec` on `device`. Only one thread may call it at a time.

    Args:
        engine: the engine's bytes, verified by the store.
        compiled_file: file for the kernels that TensorRT-RTX compiles, one per engine and GPU.
        weights: ONNX graph with the weights of an engine that is stored without them.
        cuda_graph: replay calls with shapes seen before as one CUDA graph.

    Raises RuntimeUnavailableError if the engine cannot run on this machine.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        engine: bytes,
        device: torch.device,
        *,
        compiled_file: Path,
        weights: Path | None = None,
        cuda_graph: bool = False,
    ) -> None:
        require_gpu()
        from export.tensorrt.loading import Contexts, load_engine

        self._spec, self._device, self._compiled_file = spec, device, compiled_file
        with torch.cuda.device(device):
            self._contexts = Contexts(
                load_engine(engine, weights=weights),
                cuda_graph=cuda_graph,
                compiled=load_compiled(compiled_file),
            )
            self._stream = torch.cuda.Stream()
            self._direct = None if cuda_graph else self._contexts.new()
        self._graphs: OrderedDict[tuple[torch.Size, ...], _Graph] = OrderedDict()
        self._seen: set[tuple[torch.Size, ...]] = set()

    @property
    def description(self) -> str:
        from export.tensorrt.bindings import VERSION

        return f"{VERSION} on {torch.cuda.get_device_name(self._device)}"

    @torch.no_grad()
    def __call__(self, **inputs: Tensor) -> Tensors:
        check_sizes(self._spec, inputs)
        assert all(value.is_cuda for value in inputs.values()), (
            f"{self._spec.name}: inputs must be on the GPU"
        )
        with torch.cuda.device(self._device):
            outputs = [self._run(piece) for piece in pieces(self._spec, inputs)]
        return join(self._spec, outputs, rows(self._spec, inputs))

    def _run(self, inputs: Tensors) -> Tensors:
        """Run one piece on a separate stream: on the default stream, TensorRT synchronizes the device."""
        inputs = {given.name: inputs[given.name].float().contiguous() for given in self._spec.inputs}
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            outputs = self._launch(inputs)
        caller.wait_stream(self._stream)
        for value in inputs.values():
            value.record_stream(self._stream)
        for value in outputs.values():
            value.record_stream(caller)
        self._keep_compiled(inputs)
        return outputs

    def _launch(self, inputs: Tensors) -> Tensors:
        if self._direct is not None:
            outputs = bind(self._direct, inputs, self._spec.outputs)
            enqueue(self._direct, self._stream)
            return outputs
        shapes = tuple(value.shape for value in inputs.values())
        if shapes not in self._graphs:
            if len(self._graphs) == MAX_GRAPHS:
                self._stream.synchronize()
                self._graphs.popitem(last=False)
            self._graphs[shapes] = _Graph(self._contexts.new(), inputs, self._spec.outputs, self._stream)
        self._graphs.move_to_end(shapes)
        return self._graphs[shapes](inputs)

    def _keep_compiled(self, inputs: Tensors) -> None:
        """Save new kernels: TensorRT-RTX compiles when it first sees a set of shapes."""
        shapes = tuple(value.shape for value in inputs.values())
        if shapes not in self._seen:
            self._seen.add(shapes)
            if kernels := self._contexts.compiled():
                save_compiled(self._compiled_file, kernels)


class _Graph:
    """A CUDA graph for one set of shapes, with its inputs and outputs at fixed addresses.

    It has its own context, because a graph becomes invalid once its context has seen other shapes.
    """

    def __init__(
        self,
        context: trt.IExecutionContext,
        inputs: Tensors,
        outputs: tuple[str, ...],
        stream: torch.cuda.Stream,
    ) -> None:
        from export.tensorrt.bindings import IS_RTX

        self._context, self._stream = context, stream
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        self._outputs = bind(context, self._inputs, outputs)
        enqueue(context, stream)  # allocate and compile first, which a capture may not do
        self._graph = None if IS_RTX else self._capture()

    def __call__(self, inputs: Tensors) -> Tensors:
        for name, value in inputs.items():
            self._inputs[name].copy_(value)
        if self._graph is not None:
            self._graph.replay()
        else:
            enqueue(self._context, self._stream)  # TensorRT-RTX replays its own graph
        return {name: value.clone() for name, value in self._outputs.items()}

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with capture_cuda_graph(graph, self._stream):
            enqueue(self._context, self._stream)
        return graph


def bind(context: trt.IExecutionContext, inputs: Tensors, outputs: tuple[str, ...]) -> Tensors:
    """Bind the memory of the inputs and of new outputs to the context; return the outputs."""
    for name, value in inputs.items():
        _check(context.set_input_shape(name, tuple(value.shape)), name)
        _check(context.set_tensor_address(name, value.data_ptr()), name)
    device = next(iter(inputs.values())).device
    bound = {}
    for name in outputs:
        bound[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=torch.float32, device=device)
        _check(context.set_tensor_address(name, bound[name].data_ptr()), name)
    return bound


def enqueue(context: trt.IExecutionContext, stream: torch.cuda.Stream) -> None:
    """Launch the engine on the stream, with the bound tensors."""
    _check(context.execute_async_v3(stream.cuda_stream), "execution")


def _check(succeeded: bool, what: str) -> None:
    if not succeeded:
        from export.tensorrt.bindings import LOGGER, VERSION

        raise ExportError(f"{VERSION}: {what} failed: {LOGGER.take()}; choose another --runtime")


def load_compiled(path: Path) -> bytes | None:
    """Return the kernels that TensorRT-RTX compiled earlier, or None if the file is missing or damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, compiled = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    return compiled if hashlib.sha256(compiled).digest() == digest else None


def save_compiled(path: Path, compiled: bytes) -> None:
    """Replace the file, unless another process with the same engine is writing it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.exclusive_if_free(path.with_name(f".{path.name}.lock")) as free:
        if free:
            with replacing(path) as part:
                part.write_bytes(hashlib.sha256(compiled).digest() + compiled)
