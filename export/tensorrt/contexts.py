"""Execution contexts: what runs an engine, one for each set of shapes at a time."""

from export.errors import RuntimeUnavailableError
from export.tensorrt.bindings import IS_RTX, LOGGER, VERSION, trt


class Contexts:
    """Makes the contexts of one engine.

    TensorRT-RTX compiles kernels on this GPU at the first use of a shape; the contexts share them, and
    `compiled` may hold those of an earlier process.
    """

    def __init__(self, engine: trt.ICudaEngine, *, cuda_graph: bool, compiled: bytes | None) -> None:
        self._engine = engine
        self._config = engine.create_runtime_config() if IS_RTX else None
        self._cache = self._config.create_runtime_cache() if self._config else None
        if self._config and self._cache:
            if compiled and not self._cache.deserialize(compiled):
                LOGGER.take()  # they are of another GPU, driver or version, and are compiled anew
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
                f"{VERSION}: the engine does not start: {LOGGER.take()}; take another --runtime"
            )
        return context

    def compiled(self) -> bytes | None:
        """What TensorRT-RTX has compiled so far."""
        return bytes(self._cache.serialize()) if self._cache else None
