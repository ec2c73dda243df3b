"""Export one network in the lowest precision in which the runtime reproduces torch."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.exporting.checking import Check
from engine.exporting.handover import ModelWriter
from engine.exporting.networks import Networks
from engine.exporting.real_inputs import RealInputs
from engine.exporting.up_to_date import CLASSIFIERS
from engine.hardware import native_precision
from engine.runtime import artifacts
from engine.runtime.base import Executable, RuntimeOptions
from engine.runtime.batching import with_fixed_batch
from engine.runtime.open import SAFER, open_graph, safer_precision
from export.errors import ExportError
from export.parity import Parity, compare, reference
from export.spec import NetworkSpec, Precision
from export.store import Store

LARGE = 100_000_000
"""Number of parameters above which the parity check uses a single sample."""
ROWS = 2


@dataclass(kw_only=True)
class NetworkReport:
    """The result of exporting one network."""

    precision: Precision
    parity: dict[str, dict[str, Parity]] = field(default_factory=dict)
    """By runtime and precision, including failed ones; then by kind of inputs, random and real."""
    as_called: Check | None = None
    """For a classifier: the model that is handed over, compared with the weights in torch."""
    entries: list[str] = field(default_factory=list)
    """Names of the store's entries: the graph and, if one was built, the engine."""
    handed_over: Path | None = None
    """The folder of a classifier's model and JSON."""
    megabytes: float = 0.0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        parity = {
            name: {kind: result.as_json() for kind, result in kinds.items()}
            for name, kinds in self.parity.items()
        }
        return {
            "precision": self.precision,
            "entries": self.entries,
            "megabytes": round(self.megabytes, 1),
            "seconds": round(self.seconds, 1),
            "parity": parity,
            "as_called": self.as_called and self.as_called.as_json(),
        }


def export_network(
    name: str, networks: Networks, real: RealInputs | None, options: RuntimeOptions, writer: ModelWriter
) -> NetworkReport:
    """Export a network, check its parity with torch, build its engine, and write a classifier's model.

    Raises ExportError if no precision reproduces torch.
    """
    start = time.perf_counter()
    report = NetworkReport(precision=options.precision)
    while True:
        spec, graph, parity = _export_and_compare(name, networks, real, options)
        checking = _checking_options(options)
        report.parity[f"{checking.runtime} {checking.precision}"] = parity
        failed = next((result for result in parity.values() if not result.passes), None)
        if failed is None:
            engine = artifacts.engine(spec, graph, options) if options.runtime == "tensorrt" else None
            if name not in CLASSIFIERS:
                break
            report.handed_over, report.as_called = writer.write(spec, graph, engine, options)
            if report.as_called.passes:
                break
            failed = report.as_called.parity
            if (options.runtime, options.precision) not in SAFER or report.as_called.contradiction:
                raise ExportError(
                    f"{name}: the exported model, called as {name}.json says, does not match the {name} in"
                    f" torch: {report.as_called}; no model was written, please report this"
                )
        options = replace(options, precision=safer_precision(name, options, failed))
    report.precision = options.precision
    report.entries = [graph.path.parent.name, *([engine.name] if engine else [])]
    files = (file for entry in report.entries for file in (options.store.folder / entry).iterdir())
    report.megabytes = sum(file.stat().st_size for file in files) / 1e6
    report.seconds = time.perf_counter() - start
    return report


def _checking_options(options: RuntimeOptions) -> RuntimeOptions:
    """Return the options to run the graph with: its own or, for TensorRT without a GPU, a substitute's.

    OpenVINO runs bf16 graphs, which ONNX Runtime cannot run on a CPU. On a processor without bf16, it
    computes in float32, but with the graph's weights and its roundings between the operators.
    """
    if options.runtime != "tensorrt" or options.device.type == "cuda":
        return options
    if options.precision != "bf16":
        return replace(options, runtime="onnxruntime")
    return replace(options, runtime="openvino", precision=native_precision("cpu"))


def _export_and_compare(
    name: str, networks: Networks, real: RealInputs | None, options: RuntimeOptions
) -> tuple[NetworkSpec, artifacts.Graph, dict[str, Parity]]:
    """Return a network's spec without its weights, its graph, and the parity by kind of inputs."""
    spec = networks.load(name)
    sizes = _sizes(spec, options)
    kinds = {"random": spec.example(sizes)}
    if real is not None:
        kinds["real"] = {given: value[: sizes["batch"]] for given, value in real.inputs(spec, sizes).items()}
    wanted = {kind: reference(spec, inputs) for kind, inputs in kinds.items()}
    graph = artifacts.graph(spec, options)
    spec = replace(spec, module=nn.Identity())  # a large network and its session do not fit into memory
    with _open(spec, graph, options, rows=sizes["batch"]) as executable:
        parity = {
            kind: compare(wanted[kind], executable(**_on(options.device, inputs)), options.precision)
            for kind, inputs in kinds.items()
        }
    return spec, graph, parity


@contextmanager
def _open(
    spec: NetworkSpec, graph: artifacts.Graph, options: RuntimeOptions, *, rows: int
) -> Iterator[Executable]:
    checking = _checking_options(options)
    if checking is options:
        yield open_graph(spec, graph, options)
        return
    with (
        tempfile.TemporaryDirectory() as folder,  # the export has no use for what a substitute compiles
        Store(Path(folder)) as store,
    ):
        yield open_graph(with_fixed_batch(spec, rows), graph, replace(checking, store=store))


def _sizes(spec: NetworkSpec, options: RuntimeOptions) -> dict[str, int]:
    """Return the sizes of the check's inputs: the tuned ones, or the smallest if a substitute runs."""
    substituted = _checking_options(options) is not options
    sizes = {name: axis.min if substituted else axis.opt for name, axis in spec.axes().items()}
    is_large = sum(weight.numel() for weight in spec.module.parameters()) > LARGE
    return sizes | {"batch": 1 if is_large else ROWS}


def _on(device: torch.device, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}
