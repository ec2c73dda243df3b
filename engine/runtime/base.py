"""The protocol of a frozen network, the options for opening it in a runtime, and the errors of runtimes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from engine.config.compute import ComputeConfig, Runtime
from engine.config.tensorrt import TensorRtConfig
from engine.errors import UserError
from engine.runtime.micro_batch import is_out_of_memory
from export.errors import ExportError
from export.spec import Precision
from export.store import Store


class Executable(Protocol):
    """A frozen network open in a runtime: `executable(images=x)["logits"]`.

    Names of inputs and outputs come from the network's spec. Inputs are float32 tensors on the device that
    the network was opened on. Outputs are float32 and have no gradients, except in a `FusedClassifier`. The
    batch, the first axis of every output, may have any size.
    """

    @property
    def description(self) -> str:
        """Library, version and device: the numbers depend on them and on the graph."""

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How a runtime opens and runs the frozen networks."""

    runtime: Runtime
    precision: Precision
    device: torch.device
    threads: int
    """Number of CPU threads of one call."""
    store: Store
    """Holds graphs, engines and compiled models."""
    compiled: bool = False
    """For torch: compile with inductor."""
    onnx_provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    """For onnxruntime: the execution provider; auto selects the one for the device."""
    cuda_graph: bool = False
    """For tensorrt: replay calls with shapes seen before as CUDA graphs."""
    tensorrt: TensorRtConfig = TensorRtConfig()


def runtime_options(compute: ComputeConfig, tensorrt: TensorRtConfig, device: torch.device) -> RuntimeOptions:
    """Return the options for a resolved `compute`; the store is in its engines folder."""
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


@contextmanager
def refusals(
    network: str, runtime: str, way_out: str = "choose another --runtime, or check the image size"
) -> Iterator[None]:
    """Raise ExportError for what `runtime` raises in the block; name both, the reason and the way out.

    Use it for opening and for the first run. What fails later may be of the moment, and a retry may help.
    Too little memory and errors of the system, such as a full disk, are raised as they are.
    """
    try:
        yield
    except (ExportError, UserError, OSError):
        raise
    except Exception as error:  # the libraries' errors share no base class
        if is_out_of_memory(error):
            raise
        raise ExportError(f"{network}: {runtime} refuses the network: {_reason(error)}; {way_out}") from error


def _reason(error: Exception) -> str:
    """Return the last line of the first paragraph: before it, OpenVINO lists the places in its source."""
    paragraph = str(error).strip().partition("\n\n")[0].splitlines()
    return (paragraph[-1].strip() if paragraph else type(error).__name__).rstrip(".")
