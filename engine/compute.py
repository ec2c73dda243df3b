"""Where a run computes and in which precision."""

import os
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine import ranks
from engine.config.decides import decides
from engine.errors import UserError
from export.errors import RuntimeUnavailableError

if TYPE_CHECKING:
    from accelerate import Accelerator

Runtime = Literal["torch", "openvino", "onnxruntime", "tensorrt"]
RuntimePrecision = Literal["fp32", "bf16", "fp16"]
BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}
MIXED_PRECISION = {"fp32": "no", "bf16": "bf16"}


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
    def engines_folder(self) -> Path:
        """Where graphs and engines are kept."""
        given = self.engines or os.environ.get("ENGINE_CACHE") or "~/.cache/dda-engine"
        return Path(given).expanduser()


def available_cores() -> int:
    """Of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolved(config: ComputeConfig) -> ComputeConfig:
    """`settled`, and the runtime can run here, else UserError or RuntimeUnavailableError."""
    used = settled(config)
    _require_runtime(used)
    return used


def settled(config: ComputeConfig) -> ComputeConfig:
    """The configuration with every `auto` and null replaced by what this machine gives.

    Raises UserError for a device that the machine does not have.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    device = config.device
    if device == "auto":
        device = "cuda" if has_cuda and config.runtime != "openvino" else "cpu"
    if device == "cuda" and not has_cuda:
        raise UserError("compute.device cuda: torch sees no GPU here; take --compute.device cpu")
    precision = config.precision if config.precision != "auto" else native_precision(device)
    runtime = config.runtime if config.runtime != "auto" else _native_runtime(device, config.compile)
    threads = config.threads or torch.get_num_threads()
    return replace(
        config,
        device=device,
        precision=precision,
        runtime=runtime,
        runtime_precision=_runtime_precision(config, runtime, device, precision),
        threads=threads,
        overlap=_overlap(config, device, threads),
    )


def _overlap(config: ComputeConfig, device: str, threads: int) -> bool:
    if config.overlap is True and device == "cpu" and threads < 2:
        raise UserError(
            f"compute.overlap true shares out compute.threads, which is {threads} here; give 2 or more, or "
            "--compute.overlap false"
        )
    return device == "cuda" and not config.compile if config.overlap == "auto" else config.overlap


def native_precision(device: str) -> Literal["fp32", "bf16"]:
    """bf16 where the hardware has matrix products of it, else fp32."""
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    import kernels

    return "bf16" if BF16_INSTRUCTIONS.intersection(kernels.cpu_features()) else "fp32"


def _native_runtime(device: str, compiled: bool) -> Runtime:
    return "openvino" if device == "cpu" and not compiled and find_spec("openvino") else "torch"


def _require_runtime(config: ComputeConfig) -> None:
    runtime = config.runtime
    if runtime == "tensorrt":
        from engine.runtime.tensorrt import require_gpu

        require_gpu()
        if config.device == "cpu":
            raise UserError("compute.runtime tensorrt runs on the GPU; leave --compute.device cpu out")
    elif runtime == "openvino" and config.device != "cpu":
        raise UserError("compute.runtime openvino runs on CPUs; take --compute.device cpu or --runtime torch")
    elif not find_spec(runtime):
        raise RuntimeUnavailableError(
            f"compute.runtime {runtime}: the package is not installed; pip install {runtime}, or take "
            "--runtime torch"
        )


def _runtime_precision(
    config: ComputeConfig, runtime: Runtime, device: str, precision: Literal["fp32", "bf16"]
) -> RuntimePrecision:
    if config.runtime_precision != "auto":
        return config.runtime_precision
    if runtime in ("torch", "openvino"):
        return precision
    return "fp16" if runtime == "tensorrt" or device == "cuda" else "fp32"


def open_accelerator(config: ComputeConfig) -> "Accelerator":
    """The Accelerator of a run. Sets torch's threads and the kernels' implementation, and on a CPU keeps
    freed memory mapped for reuse. In a process that torchrun has started it joins the group of all ranks, by
    NCCL between GPUs, by gloo between CPUs. Raises UserError for more ranks than GPUs.

    One run at a time in a process: Accelerate's state is shared, and the last call owns it.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    from export.float32 import use_exact_float32
    from kernels.backend import set_backend

    used = resolved(config)
    assert used.threads is not None
    set_backend("torch" if config.kernels == "torch" else None)
    if used.device == "cuda":
        ranks.require_gpus(torch.cuda.device_count())
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        if used.precision == "fp32":
            use_exact_float32()
    else:
        import kernels

        kernels.retain_freed_memory()
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # else a second run keeps the first one's precision
    accelerator = Accelerator(
        cpu=used.device == "cpu",
        mixed_precision=MIXED_PRECISION[used.precision],
        kwargs_handlers=[InitProcessGroupKwargs(timeout=ranks.TIMEOUT)],
    )
    torch.set_num_threads(
        used.threads
    )  # where it makes the group of several ranks, Accelerate sets them, too
    return accelerator
