"""The ways to run a network, with our runtimes and the matching baseline of each."""

from importlib import import_module
from typing import Any

from engine.runtime.place import Place

OURS: dict[str, dict[str, dict[str, Any]]] = {
    "eager": {
        "torch fp16": {"runtime": "torch", "precision": "fp16", "compiled": False},
        "torch bf16": {"runtime": "torch", "precision": "bf16", "compiled": False},
    },
    "compiled": {"torch fp16 compiled": {"runtime": "torch", "precision": "fp16", "compiled": True}},
    "tensorrt": {"tensorrt fp16": {"runtime": "tensorrt", "precision": "fp16", "compiled": False}},
}
"""Our runtime options by name."""
BASELINES = {"eager": "eager", "compiled": "torch.compile"}


def require_here(place: Place) -> None:
    """Raise RuntimeUnavailableError if TensorRT's GPU or package is missing, before anything is built."""
    if place.runtime == "tensorrt":
        from engine.runtime.tensorrt import require_gpu

        require_gpu()
        import_module("export.tensorrt.bindings")
