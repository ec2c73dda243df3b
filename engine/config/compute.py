"""Where a run computes and in which precision."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.config.decides import decides
from engine.errors import UserError

Runtime = Literal["torch", "openvino", "onnxruntime", "tensorrt"]
RuntimePrecision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Device, precision and threads. `auto` is settled where the run starts and recorded with it."""

    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=decides("images", "execution"))
    """Where the networks run; auto takes the GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto", metadata=decides("images", "numbers", "execution")
    )
    """Type of the matrix products of training; auto takes bf16 where the hardware has it. On a GPU fp32 is
    not rounded to TF32."""
    runtime: Literal["auto", "torch", "openvino", "onnxruntime", "tensorrt"] = field(
        default="auto", metadata=decides("images", "execution")
    )
    """What runs the frozen networks (the prior's, CLIP's image tower, the teacher where no gradient passes
    through it); auto takes openvino on a CPU that has it, torch elsewhere."""
    runtime_precision: Literal["auto", "fp32", "bf16", "fp16"] = field(
        default="auto", metadata=decides("images", "numbers", "execution")
    )
    """Type of their matrix products; auto takes fp16 in tensorrt and in onnxruntime on a GPU, fp32 in
    onnxruntime on a CPU, else `precision`. A network that it does not hold is run in a safer one."""
    onnx_provider: Literal["auto", "cpu", "cuda", "tensorrt"] = field(
        default="auto", metadata=decides("images", "execution")
    )
    """Execution provider of runtime onnxruntime; auto takes that of the device."""
    compile: bool = field(default=False, metadata=decides("images", "numbers", "execution"))
    """Runtime torch: by inductor, which takes a minute to compile."""
    engines: str = ""
    """Folder that keeps graphs and engines, such as --out of python -m export; by default
    $ENGINE_CACHE, else ~/.cache/dda-engine."""
    engines_gb: float = 20.0
    """Size of that folder above which the least recently used are removed, in GB."""
    threads: int | None = field(default=None, metadata=decides("images", "execution"))
    """CPU threads of torch in each process; null keeps its own choice, 1 where torchrun starts several."""
    overlap: bool | Literal["auto"] = field(default="auto", metadata=decides("images", "execution"))
    """engine.generate: synthesis, augmentation and filter of consecutive shards side by side; on a CPU they
    share `threads` out. auto does so on a GPU, unless `compile` is set."""
    kernels: Literal["fused", "torch"] = field(
        default="fused", metadata=decides("images", "numbers", "execution")
    )
    """The project's own kernels, or plain torch in their places, for comparison."""
    cuda_graphs: bool = True
    """On a GPU: record the synthesis step and replay it, instead of launching each kernel."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UserError(
                f"compute.threads must be 1 or more, got {self.threads}; null is torch's own choice"
            )
        if not self.engines_gb > 0:
            raise UserError(f"compute.engines_gb must be above 0, got {self.engines_gb}")
        if self.onnx_provider != "auto" and self.runtime != "onnxruntime":
            raise UserError(
                f"compute.onnx_provider {self.onnx_provider} is of runtime onnxruntime, "
                f"not of {self.runtime}; set one of them"
            )
        if self.overlap is True and self.compile:
            raise UserError(
                "compute.overlap true does not go with compute.compile true: inductor, while it compiles, "
                "changes what all threads share; set one of them to false"
            )
        if self.compile and self.runtime not in ("auto", "torch"):
            raise UserError(f"compute.compile is of runtime torch, not of {self.runtime}; set one of them")

    @property
    def is_resolved(self) -> bool:
        """Whether `engine.cli.resolve` has given every setting a value. An `onnx_provider` of auto stays: it
        follows `device`."""
        given = (self.device, self.precision, self.runtime, self.runtime_precision, self.overlap)
        return "auto" not in given and self.threads is not None

    @property
    def engines_folder(self) -> Path:
        """Where graphs and engines are kept."""
        given = self.engines or os.environ.get("ENGINE_CACHE") or "~/.cache/dda-engine"
        return Path(given).expanduser()
