"""Load engines onto the GPU and create their execution contexts.

An engine is executable code: load only bytes whose hash the store has verified.
"""

import logging
from pathlib import Path

import torch

from export.errors import ExportError, RuntimeUnavailableError
from export.tensorrt.bindings import IS_RTX, LOGGER, VERSION, trt
from export.tensorrt.builder import first_error

logger = logging.getLogger(__name__)

DIAGNOSES = {
    "VERSION_MISMATCH": "another version built the engine",
    "UNSUPPORTED_CC": "the engine was not built for this compute capability",
    "OLD_CUDA_DRIVER": "the CUDA driver is too old",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old",
    "INSUFFICIENT_GPU_MEMORY": "it has too little memory",
    "MALFORMED_ENGINE": "the file is not an engine",
    "CUDA_ERROR": "the CUDA driver or runtime is not installed correctly",
}


def load_engine(blob: bytes, *, weights: Path | None) -> trt.ICudaEngine:
    """Load an engine onto the current GPU; `weights` is the ONNX graph of an engine stored without weights.

    Raises RuntimeUnavailableError if it cannot run on this GPU; logs a warning if it will be slow.
    """
    LOGGER.take()
    runtime = trt.Runtime(LOGGER)
    if IS_RTX:
        _check_validity(runtime, blob)
    engine = runtime.deserialize_cuda_engine(blob)
    if engine is None:
        raise RuntimeUnavailableError(
            f"{VERSION} cannot load the engine: {LOGGER.take()}; rebuild it, or choose another --runtime"
        )
    if weights:
        _refit(engine, weights)
    return engine


def _check_validity(runtime: trt.Runtime, blob: bytes) -> None:
    validity, bits = runtime.get_engine_validity(blob)
    if validity == trt.EngineValidity.VALID:
        return
    line = f"{_gpu()}: {diagnosis(bits)}"
    if validity == trt.EngineValidity.SUBOPTIMAL:
        logger.warning(f"{VERSION}: the engine will not run at its best on {line}")
        return
    raise RuntimeUnavailableError(
        f"{VERSION} cannot run the engine on {line}; build it for this GPU, or choose another --runtime"
    )


def diagnosis(bits: int) -> str:
    """Describe the diagnostic bits of get_engine_validity in words."""
    flags = trt.EngineInvalidityDiagnostics.__members__
    return (
        " and ".join(DIAGNOSES.get(name, name) for name in flags if bits & flags[name].value) or LOGGER.take()
    )


def _gpu() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"


def _refit(engine: trt.ICudaEngine, onnx_path: Path) -> None:
    """Load the graph's weights into an engine that was built from it without weights.

    Raises ExportError if the weights do not match the engine, or RuntimeUnavailableError if the GPU rejects
    them.
    """
    refitter = trt.Refitter(engine, LOGGER)
    parser = trt.OnnxParserRefitter(refitter, LOGGER)
    if not parser.refit_from_file(str(onnx_path)):
        error = first_error(parser.get_error, parser.num_errors)
    elif missing := refitter.get_missing_weights():
        error = f"{', '.join(missing[:3])} missing"
    elif not refitter.refit_cuda_engine():
        raise RuntimeUnavailableError(
            f"{VERSION} cannot load the weights into the engine: {LOGGER.take()}; choose another --runtime"
        )
    else:
        return
    raise ExportError(f"{onnx_path}: {VERSION} cannot refit the engine: {error}; rebuild the engine")


class Contexts:
    """Creates the execution contexts of one engine; each context serves one set of shapes at a time.

    TensorRT-RTX compiles kernels for this GPU when it first sees a shape. All contexts share them, and
    `compiled` may pass in those of an earlier process.
    """

    def __init__(self, engine: trt.ICudaEngine, *, cuda_graph: bool, compiled: bytes | None) -> None:
        self._engine = engine
        self._config = engine.create_runtime_config() if IS_RTX else None
        self._cache = self._config.create_runtime_cache() if self._config else None
        if self._config and self._cache:
            if compiled and not self._cache.deserialize(compiled):
                LOGGER.take()  # compiled for another GPU, driver or version: compile again
            self._config.set_runtime_cache(self._cache)
            self._config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            if cuda_graph:
                self._config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE

    def new(self) -> trt.IExecutionContext:
        engine, config = self._engine, self._config
        context = engine.create_execution_context(config) if config else engine.create_execution_context()
        if context is None:
            raise RuntimeUnavailableError(
                f"{VERSION} cannot start the engine: {LOGGER.take()}; choose another --runtime"
            )
        return context

    def compiled(self) -> bytes | None:
        """Return the kernels that TensorRT-RTX has compiled so far."""
        return bytes(self._cache.serialize()) if self._cache else None
