"""Write the files that a user takes: a classifier's model, and a JSON that says how to call it."""

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

from engine.config.classifier import ClassifierConfig
from engine.exporting.calling import Run
from engine.exporting.checking import Check, check
from engine.exporting.networks import Networks
from engine.exporting.sample import Sample
from engine.models.classifier import LUMA
from engine.runtime.artifacts import ENGINE, Graph
from engine.runtime.base import RuntimeOptions
from engine.runtime.open import open_graph
from engine.training.run_folder import own_recipe
from export.hashed import sha256_of
from export.spec import NetworkSpec


@dataclass(frozen=True, kw_only=True)
class ModelWriter:
    """Writes classifiers to `out`/NETWORK/RUNTIME-PRECISION, each checked as its user will call it."""

    out: Path
    networks: Networks
    class_names: Sequence[str]
    run: Path | None
    """The folder of the run that is exported, if it is one."""
    sample: Sample
    """Images for the check."""

    def write(
        self, spec: NetworkSpec, graph: Graph, engine: Path | None, options: RuntimeOptions
    ) -> tuple[Path, Check]:
        """Write a classifier's folder if its check passes; return the folder and the check.

        `engine` is the store's entry of the TensorRT engine.
        """
        name, config = spec.name, self.networks.config(spec.name)
        folder = self.out / name / f"{options.runtime}-{options.precision}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as temporary:
            part = Path(temporary) / folder.name
            part.mkdir()
            files = _write_model(part, name, graph, engine, options)
            about = {
                "network": name,
                **files,
                "sha256": {path.name: sha256_of(path) for path in sorted(part.iterdir())},
                **_call_description(spec, config, self.class_names, options),
                "made_from": self._made_from(name, config),
            }
            (part / f"{name}.json").write_text(
                json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            result = check(
                part,
                name,
                self._config_of_run(name),
                self.sample,
                options.precision,
                threads=options.threads,
                run=None if engine is None else _engine_run(spec, graph, options),
            )
            if result.passes:
                shutil.rmtree(folder, ignore_errors=True)
                part.rename(folder)
        return folder, result

    def _made_from(self, name: str, config: ClassifierConfig) -> dict[str, Any]:
        path = self.networks.weights_file(name)
        run = {} if self.run is None else {"run": str(self.run.resolve())}
        return {**run, "architecture": config.name, "weights": str(path), "sha256": sha256_of(path)}

    def _config_of_run(self, name: str) -> ClassifierConfig:
        """Read the settings from the run's folder again: the check must not depend on what was exported."""
        if self.run is None:
            return self.networks.config(name)
        return replace(getattr(own_recipe(self.run), name), weights=str(self.networks.weights_file(name)))


def _write_model(
    folder: Path, name: str, graph: Graph, engine: Path | None, options: RuntimeOptions
) -> dict[str, str]:
    """Write the model's files, and return their names for the JSON."""
    if options.runtime == "openvino":
        import openvino

        from engine.runtime.openvino import core

        openvino.save_model(core().read_model(graph.path), folder / f"{name}.xml", compress_to_fp16=False)
        return {"file": f"{name}.xml"}
    for path in graph.path.parent.glob(f"{graph.path.name}*"):  # the graph refers to large weights by name
        shutil.copyfile(path, folder / (f"{name}.onnx" if path == graph.path else path.name))
    if engine is None:
        return {"file": f"{name}.onnx"}
    shutil.copyfile(engine / ENGINE, folder / f"{name}.engine")
    files = {"file": f"{name}.engine", "graph": f"{name}.onnx"}
    if options.tensorrt.refit == "stripped":
        files["refit"] = "the engine has no weights; refit it from the graph before use"
    return files


def _engine_run(spec: NetworkSpec, graph: Graph, options: RuntimeOptions) -> Run | None:
    """Return a function that runs the engine, or None without a GPU."""
    if options.device.type != "cuda":
        return None
    executable = open_graph(spec, graph, options)

    def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return executable(images=torch.from_numpy(pixels).to(options.device))["logits"].cpu().numpy()

    return run


def _call_description(
    spec: NetworkSpec, config: ClassifierConfig, class_names: Sequence[str], options: RuntimeOptions
) -> dict[str, Any]:
    """Return how to call the model, in plain values."""
    (images,) = spec.inputs
    batch, channels, height, width = images.shape
    assert not isinstance(batch, int)
    is_engine = options.runtime == "tensorrt"
    return {
        "runtime": options.runtime,
        "precision": options.precision,
        "options": _options(options),
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


def _options(options: RuntimeOptions) -> dict[str, str]:
    """Return the options with which the runtime computes as in the parity check."""
    if options.runtime == "openvino":
        from engine.runtime.openvino import HINTS

        return {"INFERENCE_PRECISION_HINT": HINTS[options.precision]}
    if options.runtime == "onnxruntime":
        on_gpu = options.device.type == "cuda"
        return {"provider": "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"}
    return {}


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    return list(values) * (channels if len(values) == 1 else 1)
