"""Opens a network in a runtime, proves it against torch, and steps to a safer precision where it fails."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from engine.compute import Runtime
from engine.runtime import artifacts
from engine.runtime.artifacts import Graph
from engine.runtime.executable import Executable
from engine.runtime.place import Place
from engine.runtime.torch import TorchExecutable
from export import float32, parity
from export.errors import ExportError
from export.fingerprint import files_hash
from export.parity import Parity, compare, reference
from export.spec import NetworkSpec, Precision
from export.store import Key

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


def open_runtime(spec: NetworkSpec, place: Place) -> Executable:
    """`spec` in the place's precision or, where that does not reproduce torch, in the next safer one.

    Raises ExportError where the network cannot be exported or no precision will do, RuntimeUnavailableError
    where the runtime's package or device is not here.
    """
    if place.runtime == "torch":
        precision = torch_precision(spec, place, lambda tried: TorchExecutable(spec, tried, place.device))
        return TorchExecutable(spec, precision, place.device, compiled=place.compiled)
    require(place)
    graph = artifacts.graph(spec, place)
    executable = open_graph(spec, graph, place)
    found = _parity(spec, graph, executable, place)
    if found.passes:
        return executable
    return open_runtime(spec, replace(place, precision=safer_precision(spec.name, place, found)))


def torch_precision(spec: NetworkSpec, place: Place, opened: Callable[[Precision], Run]) -> Precision:
    """The place's or, where what is `opened` in it does not reproduce float32, the next safer one.

    Measured at each opening: of a network that is not exported nothing is kept. `opened` should compile
    nothing, since what it gives is called once, with few rows.
    """
    precision = place.precision
    while precision != "fp32":
        tried = replace(place, precision=precision)
        found = _compared(spec, opened(precision), tried)
        if found.passes:
            break
        precision = safer_precision(spec.name, tried, found)
    return precision


def safer_precision(network: str, place: Place, found: Parity) -> Precision:
    """The next precision, said aloud, where `found` does not pass. Raises ExportError after the last."""
    failed = f"{network}: {place.runtime} {place.precision} gives {found}"
    safer = SAFER.get((place.runtime, place.precision))
    if safer is None:
        raise ExportError(f"{failed}; take --runtime torch")
    place.say(f"{failed}; taking {safer}")
    return safer


def require(place: Place) -> None:
    """Raises RuntimeUnavailableError where the place's runtime cannot compute in its precision there."""
    if place.runtime == "openvino":
        from engine.runtime.openvino import require_precision

        require_precision(place.precision)
    elif place.runtime == "onnxruntime":
        from engine.runtime.onnxruntime import require_provider

        require_provider(place)
    elif place.runtime == "tensorrt":
        from engine.runtime.tensorrt import require_gpu

        require_gpu()


def open_graph(spec: NetworkSpec, given: Graph, place: Place) -> Executable:
    """A graph of `spec`, whose module is not looked at, in a runtime other than torch; without proof."""
    if place.runtime == "openvino":
        from engine.runtime.openvino import OpenVinoExecutable

        return OpenVinoExecutable(spec, given, place)
    if place.runtime == "onnxruntime":
        from engine.runtime.onnxruntime import OnnxExecutable

        return OnnxExecutable(spec, given, place)
    from engine.runtime.tensorrt import TensorRtExecutable

    entry = artifacts.engine(spec, given, place)
    return TensorRtExecutable(
        spec,
        place.store.read(entry, artifacts.ENGINE),
        place.device,
        compiled_file=place.store.derived_folder(entry) / f"{torch.cuda.get_device_name(place.device)}.bin",
        say=place.say,
        weights=given.path if place.tensorrt.refit == "stripped" else None,
        cuda_graph=place.cuda_graph,
    )


def _parity(spec: NetworkSpec, graph: Graph, executable: Executable, place: Place) -> Parity:
    """Measured once for a graph, a runtime and a device."""

    def measure(folder: Path) -> None:
        found = _compared(spec, executable, place)
        (folder / REPORT).write_text(json.dumps(found.as_json()), encoding="utf-8")

    parts = {
        "graph": graph.digest,
        "shapes": repr(spec.shapes()),
        "runtime": executable.description,
        "code": files_hash((parity.__file__, float32.__file__)),
    }
    key = Key(network=spec.name, kind=f"{place.runtime}_parity", precision=place.precision, parts=parts)
    return Parity.from_json(
        json.loads(place.store.read(place.store.get(key, measure, doing="measuring"), REPORT))
    )


def _compared(spec: NetworkSpec, run: Run, place: Place) -> Parity:
    """On random inputs of the tuned resolution."""
    example = spec.example({"batch": PARITY_BATCH})
    inputs = {name: value.to(place.device) for name, value in example.items()}
    return compare(reference(spec, inputs), run(**inputs), place.precision)
