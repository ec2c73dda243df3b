"""Open a network in a runtime, check its parity with torch, and fall back to a safer precision."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from engine.config.compute import Runtime
from engine.runtime import artifacts
from engine.runtime.artifacts import Graph
from engine.runtime.base import Executable, RuntimeOptions
from engine.runtime.torch import TorchExecutable
from export import float32, parity
from export.errors import ExportError
from export.fingerprint import files_hash
from export.parity import Parity, compare, reference
from export.spec import NetworkSpec, Precision
from export.store import Key

logger = logging.getLogger(__name__)

SAFER: dict[tuple[Runtime, Precision], Precision] = {
    ("openvino", "bf16"): "fp32",
    ("onnxruntime", "bf16"): "fp32",
    ("onnxruntime", "fp16"): "fp32",
    ("tensorrt", "fp16"): "bf16",
    ("tensorrt", "bf16"): "fp32",
    ("torch", "fp16"): "bf16",
    ("torch", "bf16"): "fp32",
}
Run = Callable[..., dict[str, Tensor]]
"""Named tensors in, named tensors out."""
REPORT = "parity.json"
PARITY_BATCH = 2


def open_runtime(spec: NetworkSpec, options: RuntimeOptions) -> Executable:
    """Open `spec` in the requested precision, or in the next safer one if that does not reproduce torch.

    Raises:
        ExportError: if the network cannot be exported, or no precision reproduces torch.
        RuntimeUnavailableError: if the runtime's package or device is missing.
    """
    if options.runtime == "torch":
        precision = torch_precision(spec, options, lambda tried: TorchExecutable(spec, tried, options.device))
        return TorchExecutable(spec, precision, options.device, compiled=options.compiled)
    require(options)
    graph = artifacts.graph(spec, options)
    executable = open_graph(spec, graph, options)
    result = _parity(spec, graph, executable, options)
    if result.passes:
        return executable
    return open_runtime(spec, replace(options, precision=safer_precision(spec.name, options, result)))


def measure_parity(spec: NetworkSpec, options: RuntimeOptions) -> Parity:
    """Return the parity of `spec` in the requested runtime and precision. Raises as `open_runtime` does."""
    if options.runtime == "torch":
        return _measured_parity(spec, TorchExecutable(spec, options.precision, options.device), options)
    require(options)
    graph = artifacts.graph(spec, options)
    return _parity(spec, graph, open_graph(spec, graph, options), options)


def torch_precision(
    spec: NetworkSpec, options: RuntimeOptions, open_in: Callable[[Precision], Run]
) -> Precision:
    """Return the requested precision, or the next safer one if it does not reproduce float32.

    The parity is measured on each call, because the store has no entries of networks that are not exported.
    `open_in` opens the network in a precision; it should not compile, as the result runs once, on few rows.
    """
    precision = options.precision
    while precision != "fp32":
        tried = replace(options, precision=precision)
        result = _measured_parity(spec, open_in(precision), tried)
        if result.passes:
            break
        precision = safer_precision(spec.name, tried, result)
    return precision


def safer_precision(network: str, options: RuntimeOptions, failed: Parity) -> Precision:
    """Log a failed parity check and return the next safer precision. Raises ExportError if there is none."""
    failure = f"{network}: {options.runtime} {options.precision} gives {failed}"
    safer = SAFER.get((options.runtime, options.precision))
    if safer is None:
        raise ExportError(f"{failure}; use --runtime torch")
    logger.warning(f"{failure}; falling back to {safer}")
    return safer


def require(options: RuntimeOptions) -> None:
    """Raise RuntimeUnavailableError if the runtime cannot compute in the precision on the device."""
    if options.runtime == "openvino":
        from engine.runtime.openvino import require_precision

        require_precision(options.precision)
    elif options.runtime == "onnxruntime":
        from engine.runtime.onnxruntime import require_provider

        require_provider(options)
    elif options.runtime == "tensorrt":
        from engine.runtime.tensorrt import require_gpu

        require_gpu()


def open_graph(spec: NetworkSpec, graph: Graph, options: RuntimeOptions) -> Executable:
    """Open a graph of `spec` in a runtime other than torch, without a parity check or its module."""
    if options.runtime == "openvino":
        from engine.runtime.openvino import OpenVinoExecutable

        return OpenVinoExecutable(spec, graph, options)
    if options.runtime == "onnxruntime":
        from engine.runtime.onnxruntime import OnnxExecutable

        return OnnxExecutable(spec, graph, options)
    from engine.runtime.tensorrt import TensorRtExecutable

    entry = artifacts.engine(spec, graph, options)
    return TensorRtExecutable(
        spec,
        options.store.read(entry, artifacts.ENGINE),
        options.device,
        compiled_file=options.store.derived_folder(entry)
        / f"{torch.cuda.get_device_name(options.device)}.bin",
        weights=graph.path if options.tensorrt.refit == "stripped" else None,
        cuda_graph=options.cuda_graph,
    )


def _parity(spec: NetworkSpec, graph: Graph, executable: Executable, options: RuntimeOptions) -> Parity:
    """Return the parity from the store, measured once per graph, runtime and device."""

    def measure(folder: Path) -> None:
        result = _measured_parity(spec, executable, options)
        (folder / REPORT).write_text(json.dumps(result.as_json()), encoding="utf-8")

    parts = {
        "graph": graph.digest,
        "shapes": repr(spec.shapes()),
        "runtime": executable.description,
        "code": files_hash((parity.__file__, float32.__file__)),
    }
    key = Key(network=spec.name, kind=f"{options.runtime}_parity", precision=options.precision, parts=parts)
    return Parity.from_json(
        json.loads(options.store.read(options.store.get(key, measure, doing="measuring"), REPORT))
    )


def _measured_parity(spec: NetworkSpec, run: Run, options: RuntimeOptions) -> Parity:
    """Compare `run` with torch on random inputs of the tuned resolution."""
    example = spec.example({"batch": PARITY_BATCH})
    inputs = {name: value.to(options.device) for name, value in example.items()}
    return compare(reference(spec, inputs), run(**inputs), options.precision)
