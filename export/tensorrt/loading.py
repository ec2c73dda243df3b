"""Engines onto the GPU. An engine is code: give only bytes that the store has proved to be what was built."""

import logging
from pathlib import Path

import torch

from export.errors import RuntimeUnavailableError
from export.tensorrt.bindings import IS_RTX, LOGGER, VERSION, trt
from export.tensorrt.refit import refit

logger = logging.getLogger(__name__)

DIAGNOSES = {
    "VERSION_MISMATCH": "another version built the engine",
    "UNSUPPORTED_CC": "the engine was not built for this compute capability",
    "OLD_CUDA_DRIVER": "the CUDA driver is too old",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old",
    "INSUFFICIENT_GPU_MEMORY": "it has too little memory",
    "MALFORMED_ENGINE": "the file is not an engine",
    "CUDA_ERROR": "the CUDA driver or runtime is not well installed",
}


def load_engine(blob: bytes, *, weights: Path | None) -> trt.ICudaEngine:
    """The engine on the current GPU; `weights`: the ONNX graph of an engine that is stored without them.

    Raises RuntimeUnavailableError if it cannot run on this GPU; logs a warning if it will be slow.
    """
    LOGGER.take()
    runtime = trt.Runtime(LOGGER)
    if IS_RTX:
        _check_validity(runtime, blob)
    engine = runtime.deserialize_cuda_engine(blob)
    if engine is None:
        raise RuntimeUnavailableError(
            f"{VERSION}: the engine does not load: {LOGGER.take()}; build it anew, or take another --runtime"
        )
    if weights:
        refit(engine, weights)
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
        f"{VERSION} cannot run the engine on {line}; build it for this GPU, or take another --runtime"
    )


def diagnosis(bits: int) -> str:
    """In words what get_engine_validity gives as bits."""
    flags = trt.EngineInvalidityDiagnostics.__members__
    return (
        " and ".join(DIAGNOSES.get(name, name) for name in flags if bits & flags[name].value) or LOGGER.take()
    )


def _gpu() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
