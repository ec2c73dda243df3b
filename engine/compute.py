"""Where a run computes and in which precision."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from engine.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}
MIXED_PRECISION = {"fp32": "no", "bf16": "bf16"}


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Device, precision and threads. `auto` is settled where the run starts and recorded with it."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run; auto takes the GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the matrix products; auto takes bf16 where the hardware has it."""
    threads: int | None = None
    """CPU threads of torch; null keeps torch's own choice."""
    kernels: Literal["fused", "torch"] = "fused"
    """The project's own kernels, or plain torch in their places, for comparison."""
    cuda_graphs: bool = True
    """On a GPU: record the synthesis step and replay it, instead of launching each kernel."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UserError(
                f"compute.threads must be 1 or more, got {self.threads}; null is torch's own choice"
            )


def resolved(config: ComputeConfig) -> ComputeConfig:
    """The configuration with every `auto` and null replaced by what this machine gives.

    Raises UserError for what the machine does not have.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    device = config.device if config.device != "auto" else ("cuda" if has_cuda else "cpu")
    if device == "cuda" and not has_cuda:
        raise UserError("compute.device cuda: torch sees no GPU here; take --compute.device cpu")
    precision = config.precision if config.precision != "auto" else _native_precision(device)
    return replace(
        config, device=device, precision=precision, threads=config.threads or torch.get_num_threads()
    )


def _native_precision(device: str) -> Literal["fp32", "bf16"]:
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    import kernels

    return "bf16" if BF16_INSTRUCTIONS.intersection(kernels.cpu_features()) else "fp32"


def open_accelerator(config: ComputeConfig) -> "Accelerator":
    """The Accelerator of a run. Sets torch's threads and the kernels' implementation, and on a CPU keeps
    freed memory mapped for reuse.

    One run at a time in a process: Accelerate's state is shared, and the last call owns it.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from kernels.backend import set_backend

    used = resolved(config)
    assert used.threads is not None
    torch.set_num_threads(used.threads)
    set_backend("torch" if config.kernels == "torch" else None)
    if used.device == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    else:
        import kernels

        kernels.retain_freed_memory()
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # else a second run keeps the first one's precision
    return Accelerator(cpu=used.device == "cpu", mixed_precision=MIXED_PRECISION[used.precision])
