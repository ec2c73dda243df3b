"""One network into graph and engine, in the least precision that a runtime reproduces torch with."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.exporting.images import RealInputs
from engine.exporting.networks import Networks
from engine.runtime import artifacts
from engine.runtime.executable import Executable
from engine.runtime.opening import open_graph, safer_precision
from engine.runtime.place import Place
from engine.runtime.torch import TorchExecutable
from export.parity import Parity, compare, reference
from export.spec import NetworkSpec, Precision

LARGE = 100_000_000
"""Parameters above which one sample must do for the proof."""
ROWS = 2


@dataclass(kw_only=True)
class Proof:
    """What became of a network."""

    precision: Precision
    parity: dict[str, dict[str, Parity]] = field(default_factory=dict)
    """By runtime and precision, failed ones too; then by kind of inputs, random and real."""
    entries: list[str] = field(default_factory=list)
    """Folders of the store: the graph, and the engine where one was built."""
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
        }


def prove(name: str, networks: Networks, real: RealInputs | None, place: Place) -> Proof:
    """Exports the network, compares it with torch, and builds its engine.

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
            break
        place = replace(place, precision=safer_precision(name, place, failed))
    proof.precision = place.precision
    proof.entries = [graph.path.parent.name]
    if place.runtime == "tensorrt":
        proof.entries.append(artifacts.engine(spec, graph, place).name)
    files = (file for entry in proof.entries for file in (place.store.folder / entry).iterdir())
    proof.megabytes = sum(file.stat().st_size for file in files) / 1e6
    proof.seconds = time.perf_counter() - start
    return proof


def _checking(place: Place) -> Place:
    """Where the graph is executed for the proof: in its runtime or, where that cannot run, by a stand-in."""
    if place.runtime != "tensorrt" or place.device.type == "cuda":
        return place
    return replace(place, runtime="torch" if place.precision == "bf16" else "onnxruntime")


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
    graph, checking = artifacts.graph(spec, place), _checking(place)
    bare = replace(spec, module=nn.Identity())
    executable: Executable
    if checking.runtime == "torch":
        executable = TorchExecutable(spec, place.precision, place.device)
    else:
        spec = bare  # a large network and a session of it do not fit into memory together
        executable = open_graph(bare, graph, checking)
    parity = {
        kind: compare(wanted[kind], executable(**_on(place.device, inputs)), place.precision)
        for kind, inputs in kinds.items()
    }
    return bare, graph, parity


def _sizes(spec: NetworkSpec, place: Place) -> dict[str, int]:
    """Of the inputs of the proof; the least where a stand-in executes the graph, which knows no sizes."""
    stands_in = _checking(place) is not place
    sizes = {name: axis.min if stands_in else axis.opt for name, axis in spec.axes().items()}
    is_large = sum(weight.numel() for weight in spec.module.parameters()) > LARGE
    return sizes | {"batch": 1 if is_large else ROWS}


def _on(device: torch.device, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}
