"""What a user takes: the model of a classifier in a file of its own, and a JSON that says how to call it."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.exporting.calling import Run
from engine.exporting.checking import Check, check
from engine.exporting.networks import Networks
from engine.exporting.sample import Sample
from engine.models.classifier import LUMA
from engine.models.config import ClassifierConfig
from engine.recipe import CONFIG, load_recipe
from engine.runtime.artifacts import ENGINE, Graph
from engine.runtime.opening import open_graph
from engine.runtime.place import Place
from engine.training.run_record import sha256_of
from export.spec import NetworkSpec


@dataclass(frozen=True, kw_only=True)
class HandOver:
    """Puts classifiers into `out`/NETWORK/RUNTIME-PRECISION, each checked as its user will call it."""

    out: Path
    networks: Networks
    class_names: Sequence[str]
    run: Path | None
    """The run that the export is made from."""
    sample: Sample
    """Images for the check."""

    def make(self, spec: NetworkSpec, graph: Graph, engine: Path | None, place: Place) -> tuple[Path, Check]:
        """The folder, in place only if the check passes; and the check. `engine`: of TensorRT, its entry."""
        name, config = spec.name, self.networks.config(spec.name)
        folder = self.out / name / f"{place.runtime}-{place.precision}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as temporary:
            part = Path(temporary) / folder.name
            part.mkdir()
            files = _write_model(part, name, graph, engine, place)
            about = {
                "network": name,
                **files,
                "sha256": {path.name: sha256_of(path) for path in sorted(part.iterdir())},
                **_described(spec, config, self.class_names, place),
                "made_from": self._made_from(name, config),
            }
            (part / f"{name}.json").write_text(
                json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            found = check(
                part,
                name,
                self._config_now(name),
                self.sample,
                place.precision,
                threads=place.threads,
                run=None if engine is None else _opened(spec, graph, place),
            )
            if found.passes:
                shutil.rmtree(folder, ignore_errors=True)
                part.rename(folder)
        return folder, found

    def _made_from(self, name: str, config: ClassifierConfig) -> dict[str, Any]:
        path = self.networks.weights(name)
        run = {} if self.run is None else {"run": str(self.run.resolve())}
        return {**run, "architecture": config.name, "weights": str(path), "sha256": sha256_of(path)}

    def _config_now(self, name: str) -> ClassifierConfig:
        """Of the run, read from its folder once more: the check must not depend on what was exported."""
        if self.run is None:
            return self.networks.config(name)
        recipe = load_recipe(str((self.run / CONFIG).resolve()))
        return replace(getattr(recipe, name), weights=str(self.networks.weights(name)))


def _write_model(folder: Path, name: str, graph: Graph, engine: Path | None, place: Place) -> dict[str, str]:
    """The model's files; which is which, for the JSON."""
    if place.runtime == "openvino":
        import openvino

        from engine.runtime.openvino import core

        openvino.save_model(core().read_model(graph.path), folder / f"{name}.xml", compress_to_fp16=False)
        return {"file": f"{name}.xml"}
    for path in graph.path.parent.glob(f"{graph.path.name}*"):  # large weights keep the name the graph says
        shutil.copyfile(path, folder / (f"{name}.onnx" if path == graph.path else path.name))
    if engine is None:
        return {"file": f"{name}.onnx"}
    shutil.copyfile(engine / ENGINE, folder / f"{name}.engine")
    files = {"file": f"{name}.engine", "graph": f"{name}.onnx"}
    if place.tensorrt.refit == "stripped":
        files["refit"] = "the engine has no weights; refit it from the graph before use"
    return files


def _opened(spec: NetworkSpec, graph: Graph, place: Place) -> Run | None:
    """The engine as the runtime executes it; None without a GPU."""
    if place.device.type != "cuda":
        return None
    executable = open_graph(spec, graph, place)

    def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return executable(images=torch.from_numpy(pixels).to(place.device))["logits"].cpu().numpy()

    return run


def _described(
    spec: NetworkSpec, config: ClassifierConfig, class_names: Sequence[str], place: Place
) -> dict[str, Any]:
    """How to call the model: plain values."""
    (images,) = spec.inputs
    batch, channels, height, width = images.shape
    assert not isinstance(batch, int)
    is_engine = place.runtime == "tensorrt"
    return {
        "runtime": place.runtime,
        "precision": place.precision,
        "options": _options(place),
        "input": {
            "name": images.name,
            "layout": "NCHW",
            "dtype": "float32",
            "range": [0, 1],
            "from_uint8": "divide by 255",
            "colour": "RGB",
            "channels": channels,
            "height": height,
            "width": width,
        },
        "batch": {"min": batch.min, "tuned": batch.opt, "max": batch.max if is_engine else None},
        "normalization": {
            "inside": True,
            "note": "the model applies mean and std itself; give it pixels in the input's range",
            "mean": _per_channel(config.mean, config.in_channels),
            "std": _per_channel(config.std, config.in_channels),
            "grey": list(LUMA) if config.in_channels == 1 else None,
        },
        "output": {
            "name": spec.outputs[0],
            "dtype": "float32",
            "meaning": "logits, one for each class; softmax makes them probabilities",
            "classes": list(class_names),
        },
        "other_outputs": list(spec.outputs[1:]),
    }


def _options(place: Place) -> dict[str, str]:
    """What the runtime must be told to compute as it did for the proof."""
    if place.runtime == "openvino":
        from engine.runtime.openvino import HINTS

        return {"INFERENCE_PRECISION_HINT": HINTS[place.precision]}
    if place.runtime == "onnxruntime":
        on_gpu = place.device.type == "cuda"
        return {"provider": "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"}
    return {}


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    return list(values) * (channels if len(values) == 1 else 1)
