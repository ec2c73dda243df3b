"""Settings of device, precision, runtime and threads."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.config.checked import Checked
from engine.config.decides import decides

Runtime = Literal["torch", "openvino", "onnxruntime", "tensorrt"]
RuntimePrecision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Checked):
    """Device, precision, runtime and threads"""

    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=decides("images", "execution"))
    """Device that the networks run on; auto uses the GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto", metadata=decides("images", "numbers", "execution")
    )
    """Data type of matrix products in training; auto uses bf16 if the hardware supports it. On a GPU, fp32 is
    not rounded to TF32."""
    runtime: Literal["auto", "torch", "openvino", "onnxruntime", "tensorrt"] = field(
        default="auto", metadata=decides("images", "execution")
    )
    """Library that runs the frozen networks: the prior, CLIP's image tower, and the teacher when it needs no
    gradient; auto uses openvino on a CPU if it is installed, else torch."""
    runtime_precision: Literal["auto", "fp32", "bf16", "fp16"] = field(
        default="auto", metadata=decides("images", "numbers", "execution")
    )
    """Data type of matrix products in the frozen networks; auto uses fp16 in tensorrt and in onnxruntime on a
    GPU, fp32 in onnxruntime on a CPU, else compute.precision. A network that fails its parity check
    runs in a safer type."""
    onnx_provider: Literal["auto", "cpu", "cuda", "tensorrt"] = field(
        default="auto", metadata=decides("images", "execution")
    )
    """Execution provider of runtime onnxruntime; auto follows the device."""
    compile: bool = field(default=False, metadata=decides("images", "numbers", "execution"))
    """Runtime torch: compile the frozen networks with inductor, which takes a minute."""
    engines: str = ""
    """Folder of graphs and engines, such as --out of python -m export; empty uses $ENGINE_CACHE, else
    ~/.cache/dda-engine."""
    engines_gb: float = 20.0
    """Maximum size of that folder in GB; above it, the least recently used entries are removed."""
    threads: int | None = field(default=None, metadata=decides("images", "execution"))
    """CPU threads of torch in each process; null keeps torch's choice, or 1 if torchrun starts several."""
    share_cores: bool = True
    """On a CPU, in engine.run and engine.distill in one process: torch uses fewer threads while other
    processes keep cores busy; results then differ by rounding. engine.generate always uses all, as a shard's
    bytes depend on them."""
    overlap: bool | Literal["auto"] = field(default="auto", metadata=decides("images", "execution"))
    """Run synthesis, augmentation and filter of consecutive shards at the same time in engine.generate; on a
    CPU they divide compute.threads. auto does so on a GPU without compute.compile."""
    kernels: Literal["fused", "torch"] = field(
        default="fused", metadata=decides("images", "numbers", "execution")
    )
    """fused uses this project's kernels; torch uses plain torch instead, for comparison."""
    cuda_graphs: bool = True
    """On a GPU: record the synthesis step as a CUDA graph and replay it."""

    def faults(self) -> Iterator[str]:
        if self.threads is not None and self.threads < 1:
            yield f"compute.threads must be at least 1, got {self.threads}; null keeps torch's choice"
        if not self.engines_gb > 0:
            yield f"compute.engines_gb must be above 0, got {self.engines_gb}"

    def contradictions(self) -> Iterator[str]:
        if self.onnx_provider != "auto" and self.runtime != "onnxruntime":
            yield (
                f"compute.onnx_provider={self.onnx_provider} requires compute.runtime=onnxruntime "
                f"(got {self.runtime})"
            )
        if self.overlap is True and self.compile:
            yield (
                "compute.overlap and compute.compile are both true, but inductor changes state that all "
                "threads share while it compiles; set one of them to false"
            )
        if self.compile and self.runtime not in ("auto", "torch"):
            yield f"compute.compile=true requires compute.runtime=torch (got {self.runtime})"

    @property
    def is_resolved(self) -> bool:
        """Whether no setting that depends on the machine is auto or null.

        `onnx_provider` may stay auto: it follows `device`.
        """
        given = (self.device, self.precision, self.runtime, self.runtime_precision, self.overlap)
        return "auto" not in given and self.threads is not None

    @property
    def resolved_runtime(self) -> tuple[Runtime, RuntimePrecision, int]:
        """`runtime`, `runtime_precision` and `threads` of a resolved configuration."""
        assert self.runtime != "auto"
        assert self.runtime_precision != "auto"
        assert self.threads is not None
        return self.runtime, self.runtime_precision, self.threads

    @property
    def torch_precision(self) -> Literal["fp32", "bf16"]:
        """`precision` of a resolved configuration."""
        assert self.precision != "auto"
        return self.precision

    @property
    def engines_folder(self) -> Path:
        """Folder of graphs and engines."""
        given = self.engines or os.environ.get("ENGINE_CACHE") or "~/.cache/dda-engine"
        return Path(given).expanduser()
