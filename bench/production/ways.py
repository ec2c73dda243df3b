"""The ways to run a network, with our runtimes and the matching baseline of each."""

from importlib import import_module
from typing import Any

from engine.runtime.base import RuntimeOptions

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


def require_here(options: RuntimeOptions) -> None:
    """Raise RuntimeUnavailableError if TensorRT's GPU or package is missing, before anything is built."""
    if options.runtime == "tensorrt":
        from engine.runtime.tensorrt import require_gpu

        require_gpu()
        import_module("export.tensorrt.bindings")
