"""The ONNX Runtime: on CPUs, or on NVIDIA GPUs by its CUDA or TensorRT execution provider."""

import hashlib
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.runtime.artifacts import Graph
from engine.runtime.base import RuntimeOptions, refusals
from engine.runtime.batching import check_sizes, join, pieces, rows
from export.errors import RuntimeUnavailableError
from export.spec import NetworkSpec

logger = logging.getLogger(__name__)

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
WARNINGS_AND_WORSE = 3


def require_provider(options: RuntimeOptions) -> str:
    """Return the name of the execution provider.

    Raises RuntimeUnavailableError if the installed package lacks it, or if it cannot compute in the precision
    or on the device.
    """
    import onnxruntime

    choice = options.device.type if options.onnx_provider == "auto" else options.onnx_provider
    provider = PROVIDERS[choice]
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeUnavailableError(
            f"onnxruntime: the installed package has no {provider}; "
            "pip install onnxruntime-gpu instead of onnxruntime, or choose another --runtime"
        )
    if (choice == "cpu") != (options.device.type == "cpu"):
        raise RuntimeUnavailableError(
            f"onnxruntime: {provider} does not run on --compute.device {options.device.type};"
            " change --compute.onnx_provider or --compute.device"
        )
    if choice == "cpu" and options.precision == "bf16":
        raise RuntimeUnavailableError(
            "onnxruntime has no bf16 on a CPU; use --precision fp32 or --runtime openvino"
        )
    return provider


class OnnxExecutable:
    """Run a graph in the precision of its weights."""

    def __init__(self, spec: NetworkSpec, graph: Graph, options: RuntimeOptions) -> None:
        import onnxruntime

        self._provider = require_provider(options)
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        session_options.log_severity_level = WARNINGS_AND_WORSE
        self._spec, self._device = spec, options.device
        providers = [(self._provider, _options(self._provider, spec, graph, options))]
        with refusals(spec.name, "onnxruntime"):
            self._session = onnxruntime.InferenceSession(graph.path, session_options, providers=providers)
        self._has_run = False

    @property
    def description(self) -> str:
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__} on {self._provider}"

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        check_sizes(self._spec, inputs)
        has_profile = self._provider == PROVIDERS["tensorrt"]
        batches = pieces(self._spec, inputs) if has_profile else [inputs]
        count = rows(self._spec, inputs)
        with nullcontext() if self._has_run else refusals(self._spec.name, "onnxruntime"):
            outputs = join(self._spec, [self._run(batch) for batch in batches], count)
        self._has_run = True
        return outputs

    def _run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        contiguous = {name: value.float().contiguous() for name, value in inputs.items()}
        if self._device.type == "cuda":
            return self._spec.named(self._run_bound(contiguous))
        arrays = self._session.run(None, {name: value.numpy() for name, value in contiguous.items()})
        return self._spec.named(torch.from_numpy(array) for array in arrays)

    def _run_bound(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Run on torch's own memory, without a copy through the host."""
        binding: Any = self._session.io_binding()
        index = _index(self._device)
        for name, value in inputs.items():
            binding.bind_input(name, "cuda", index, np.float32, tuple(value.shape), value.data_ptr())
        for name in self._spec.outputs:
            binding.bind_output(name, "cuda", index)
        torch.cuda.current_stream(self._device).synchronize()
        self._session.run_with_iobinding(binding)
        return [torch.from_dlpack(value._ortvalue) for value in binding.get_outputs()]


def _options(provider: str, spec: NetworkSpec, graph: Graph, options: RuntimeOptions) -> dict[str, str]:
    """Return the provider's options: the device index and no TF32; for TensorRT its profile and cache."""
    if provider == PROVIDERS["cpu"]:
        return {}
    settings = {"device_id": str(_index(options.device))}
    if provider == PROVIDERS["cuda"]:
        return settings | {"use_tf32": "0"}
    for index, point in enumerate(("min", "opt", "max")):
        settings[f"trt_profile_{point}_shapes"] = ",".join(
            f"{name}:{'x'.join(map(str, shapes[index]))}" for name, shapes in spec.shapes().items()
        )
    return settings | {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(_engines(spec, graph, options)),
    }


def _engines(spec: NetworkSpec, graph: Graph, options: RuntimeOptions) -> Path:
    """Return the folder of a graph's TensorRT engines, one per GPU, version and range of sizes."""
    import onnxruntime

    built_for = (onnxruntime.__version__, torch.cuda.get_device_name(options.device), spec.shapes())
    digest = hashlib.sha256(repr(built_for).encode()).hexdigest()[:16]
    folder = options.store.derived_folder(graph.path.parent) / f"onnxruntime-tensorrt-{digest}"
    folder.mkdir(exist_ok=True)
    if not any(folder.iterdir()):
        logger.info(f"{spec.name}: onnxruntime builds a TensorRT engine at the first call, kept in {folder}")
    return folder


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
