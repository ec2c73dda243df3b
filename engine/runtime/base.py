"""The one protocol of a frozen network, and the options that a runtime opens it with."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from engine.config.compute import ComputeConfig, Runtime
from engine.config.tensorrt import TensorRtConfig
from export.spec import Precision
from export.store import Store


class Executable(Protocol):
    """A frozen network open in a runtime: `executable(images=x)["logits"]`.

    Inputs are float32 tensors on the device that the network was opened on. The names are those of its spec.
    Outputs are float32 and have no gradients, except those of a `FusedClassifier`. The first axis of every
    output is the batch, of any size.
    """

    @property
    def description(self) -> str:
        """Library, version and device: what the numbers depend on besides the graph."""

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How a runtime opens and runs the frozen networks."""

    runtime: Runtime
    precision: Precision
    device: torch.device
    threads: int
    """CPU threads of one call."""
    store: Store
    """Graphs, engines and compiled models."""
    compiled: bool = False
    """Runtime torch: compile with inductor."""
    onnx_provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    """Runtime onnxruntime: the execution provider; auto selects the one of the device."""
    cuda_graph: bool = False
    """Runtime tensorrt: replay calls of a shape seen before as CUDA graphs."""
    tensorrt: TensorRtConfig = TensorRtConfig()


def runtime_options(compute: ComputeConfig, tensorrt: TensorRtConfig, device: torch.device) -> RuntimeOptions:
    """Return the options of a resolved `compute`, with the store in its folder of engines."""
    runtime, precision, threads = compute.resolved_runtime
    return RuntimeOptions(
        runtime=runtime,
        precision=precision,
        device=device,
        threads=threads,
        store=Store(compute.engines_folder, max_bytes=int(compute.engines_gb * 1e9)),
        compiled=compute.compile,
        onnx_provider=compute.onnx_provider,
        cuda_graph=compute.cuda_graphs,
        tensorrt=tensorrt,
    )
