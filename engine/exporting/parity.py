"""One network into graph and engine, in the least precision that a runtime reproduces torch with."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.compute import native_precision
from engine.exporting.checking import Check
from engine.exporting.handover import HandOver
from engine.exporting.networks import Networks
from engine.exporting.real_inputs import RealInputs
from engine.exporting.up_to_date import CLASSIFIERS
from engine.runtime import artifacts
from engine.runtime.executable import Executable
from engine.runtime.opening import SAFER, open_graph, safer_precision
from engine.runtime.place import Place
from engine.runtime.profile import with_fixed_batch
from export.errors import ExportError
from export.parity import Parity, compare, reference
from export.spec import NetworkSpec, Precision
from export.store import Store

LARGE = 100_000_000
"""Parameters above which one sample must do for the proof."""
ROWS = 2


@dataclass(kw_only=True)
class Proof:
    """What became of a network."""

    precision: Precision
    parity: dict[str, dict[str, Parity]] = field(default_factory=dict)
    """By runtime and precision, failed ones too; then by kind of inputs, random and real."""
    as_called: Check | None = None
    """Of a classifier: the handed-over model against the weights in torch."""
    entries: list[str] = field(default_factory=list)
    """Folders of the store: the graph, and the engine where one was built."""
    handed_over: Path | None = None
    """The folder of a classifier's model and JSON."""
    megabytes: float = 0.0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        parity = {
            name: {kind: found.as_json() for kind, found in kinds.items()}
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


def prove(name: str, networks: Networks, real: RealInputs | None, place: Place, hand_over: HandOver) -> Proof:
    """Exports the network, compares it with torch, builds its engine, and hands over a classifier's files.

    Raises ExportError where no precision reproduces torch.
    """
    start = time.perf_counter()
    proof = Proof(precision=place.precision)
    while True:
        spec, graph, parity = _try(name, networks, real, place)
        checking = _checking(place)
        proof.parity[f"{checking.runtime} {checking.precision}"] = parity
        failed = next((found for found in parity.values() if not found.passes), None)
        if failed is None:
            engine = artifacts.engine(spec, graph, place) if place.runtime == "tensorrt" else None
            if name not in CLASSIFIERS:
                break
            proof.handed_over, proof.as_called = hand_over.make(spec, graph, engine, place)
            if proof.as_called.passes:
                break
            failed = proof.as_called.parity
            if (place.runtime, place.precision) not in SAFER or proof.as_called.contradiction:
                raise ExportError(
                    f"{name}: the exported model, called as {name}.json says, is not the {name}: "
                    f"{proof.as_called}; it was not handed over, please report this"
                )
        place = replace(place, precision=safer_precision(name, place, failed))
    proof.precision = place.precision
    proof.entries = [graph.path.parent.name, *([engine.name] if engine else [])]
    files = (file for entry in proof.entries for file in (place.store.folder / entry).iterdir())
    proof.megabytes = sum(file.stat().st_size for file in files) / 1e6
    proof.seconds = time.perf_counter() - start
    return proof


def _checking(place: Place) -> Place:
    """Where the graph is executed for the proof: in its runtime or, where that cannot run, by a stand-in.

    OpenVINO executes bf16 graphs, which ONNX Runtime does not on a CPU. Where the processor has no bf16, its
    arithmetic is in float32, with the weights, and the roundings between the operators, of the graph.
    """
    if place.runtime != "tensorrt" or place.device.type == "cuda":
        return place
    if place.precision != "bf16":
        return replace(place, runtime="onnxruntime")
    return replace(place, runtime="openvino", precision=native_precision("cpu"))


def _try(
    name: str, networks: Networks, real: RealInputs | None, place: Place
) -> tuple[NetworkSpec, artifacts.Graph, dict[str, Parity]]:
    """The network in one precision: its spec without the weights, its graph, parity by kind of inputs."""
    spec = networks.load(name)
    sizes = _sizes(spec, place)
    kinds = {"random": spec.example(sizes)}
    if real is not None:
        kinds["real"] = {door: value[: sizes["batch"]] for door, value in real.of(spec, sizes).items()}
    wanted = {kind: reference(spec, inputs) for kind, inputs in kinds.items()}
    graph = artifacts.graph(spec, place)
    spec = replace(spec, module=nn.Identity())  # with a session a large network does not fit into memory
    with _opened(spec, graph, place, rows=sizes["batch"]) as executable:
        parity = {
            kind: compare(wanted[kind], executable(**_on(place.device, inputs)), place.precision)
            for kind, inputs in kinds.items()
        }
    return spec, graph, parity


@contextmanager
def _opened(spec: NetworkSpec, graph: artifacts.Graph, place: Place, *, rows: int) -> Iterator[Executable]:
    checking = _checking(place)
    if checking is place:
        yield open_graph(spec, graph, place)
        return
    with (
        tempfile.TemporaryDirectory() as folder,  # what a stand-in compiles is of no use to the export
        Store(Path(folder), say=lambda _: None) as store,
    ):
        yield open_graph(with_fixed_batch(spec, rows), graph, replace(checking, store=store))


def _sizes(spec: NetworkSpec, place: Place) -> dict[str, int]:
    """Of the inputs of the proof; the least where a stand-in executes the graph, which knows no sizes."""
    stands_in = _checking(place) is not place
    sizes = {name: axis.min if stands_in else axis.opt for name, axis in spec.axes().items()}
    is_large = sum(weight.numel() for weight in spec.module.parameters()) > LARGE
    return sizes | {"batch": 1 if is_large else ROWS}


def _on(device: torch.device, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}
