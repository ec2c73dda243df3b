"""Call an exported classifier as its user will: as its JSON says, with numpy and the runtime alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.hardware import native_precision
from engine.runtime.base import refusals

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Maps images [B, C, H, W], as the model's input takes them, to logits [B, classes]."""


def call(
    about: Mapping[str, Any], folder: Path, images: NDArray[np.uint8], threads: int, run: Run | None = None
) -> NDArray[np.float32]:
    """Return the logits [N, classes] of RGB images, uint8 [N, 3, H, W].

    `about` is the JSON next to the model in `folder`. `run` is the open TensorRT engine; without it, the
    engine's graph runs instead.
    """
    pixels = as_input(about, images)
    rows = about["batch"]["max"] or about["batch"]["tuned"]
    with refusals(about["file"], about["runtime"]):
        run = run or _open_model(about, folder, threads)
        return np.concatenate([run(pixels[start : start + rows]) for start in range(0, len(pixels), rows)])


def as_input(about: Mapping[str, Any], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return RGB images, uint8 [N, 3, H, W], as the model's input takes them."""
    low, high = about["input"]["range"]
    pixels = low + (high - low) * (images.astype(np.float32) / np.float32(255))
    if not about["normalization"]["inside"]:
        mean, std = (np.float32(about["normalization"][name]).reshape(-1, 1, 1) for name in ("mean", "std"))
        pixels = (pixels - mean) / std
    return np.ascontiguousarray(pixels, np.dtype(about["input"]["dtype"]))


def _open_model(about: Mapping[str, Any], folder: Path, threads: int) -> Run:
    name, output = about["input"]["name"], about["output"]["name"]
    path = str(folder / about.get("graph", about["file"]))
    if about["runtime"] == "openvino" or (about["runtime"] == "tensorrt" and about["precision"] == "bf16"):
        options = {**_default_openvino_options(), **about["options"]}
        return _open_in_openvino(path, name, output, options, threads)
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    providers = [about["options"].get("provider", "CPUExecutionProvider")]
    session = onnxruntime.InferenceSession(path, session_options, providers=providers)
    return lambda pixels: session.run([output], {name: pixels})[0]


def _default_openvino_options() -> dict[str, str]:
    """Return the options for a bf16 graph of TensorRT's, whose JSON has none for OpenVINO."""
    return {"INFERENCE_PRECISION_HINT": "bf16" if native_precision("cpu") == "bf16" else "f32"}


def _open_in_openvino(path: str, name: str, output: str, options: Mapping[str, str], threads: int) -> Run:
    from engine.runtime.openvino import core

    compiled = core().compile_model(path, "CPU", {**options, "INFERENCE_NUM_THREADS": threads})
    return lambda pixels: compiled({name: pixels})[output]
