"""What runs the frozen networks, and where."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from engine.config.compute import ComputeConfig, Runtime
from engine.config.tensorrt import TensorRtConfig
from export.spec import Precision
from export.store import Store


@dataclass(frozen=True, kw_only=True)
class Place:
    """`say` gets a line for each build and each fall-back."""

    runtime: Runtime
    precision: Precision
    device: torch.device
    threads: int
    store: Store
    say: Callable[[str], None]
    compiled: bool = False
    """The torch runtime: by inductor."""
    onnx_provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    """The ONNX Runtime: auto is that of the device."""
    cuda_graph: bool = False
    """The TensorRT runtime: calls of a shape seen before are replayed."""
    tensorrt: TensorRtConfig = TensorRtConfig()


def open_place(
    compute: ComputeConfig, tensorrt: TensorRtConfig, device: torch.device, say: Callable[[str], None]
) -> Place:
    """The place of a settled configuration, with the store in its folder of engines."""
    assert compute.threads is not None
    assert compute.runtime != "auto"
    assert compute.runtime_precision != "auto"
    return Place(
        runtime=compute.runtime,
        precision=compute.runtime_precision,
        device=device,
        threads=compute.threads,
        store=Store(compute.engines_folder, max_bytes=int(compute.engines_gb * 1e9), say=say),
        say=say,
        compiled=compute.compile,
        onnx_provider=compute.onnx_provider,
        cuda_graph=compute.cuda_graphs,
        tensorrt=tensorrt,
    )
