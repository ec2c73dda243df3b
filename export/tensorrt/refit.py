"""Weights into engines that were built without."""

from pathlib import Path

from export.errors import ExportError, RuntimeUnavailableError
from export.tensorrt.bindings import LOGGER, VERSION, trt
from export.tensorrt.builder import first_error


def refit(engine: trt.ICudaEngine, onnx_path: Path) -> None:
    """Puts the weights of the graph into the engine, which was built from it and stripped.

    Needs the GPU that holds the engine. Raises ExportError where the weights are not the engine's,
    RuntimeUnavailableError where the GPU does not take them.
    """
    refitter = trt.Refitter(engine, LOGGER)
    parser = trt.OnnxParserRefitter(refitter, LOGGER)
    if not parser.refit_from_file(str(onnx_path)):
        error = first_error(parser.get_error, parser.num_errors)
    elif missing := refitter.get_missing_weights():
        error = f"{', '.join(missing[:3])} missing"
    elif not refitter.refit_cuda_engine():
        raise RuntimeUnavailableError(
            f"{VERSION} cannot put the weights into the engine: {LOGGER.take()}; take another --runtime"
        )
    else:
        return
    raise ExportError(f"{onnx_path}: {VERSION} cannot refit the engine: {error}; build the engine anew")
