"""Training in one process, or on several ranks that torchrun starts.

`open_accelerator` opens the device of this process.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from engine.config.compute import ComputeConfig
from engine.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

TIMEOUT = timedelta(hours=1)
"""Limit of a collective: another rank may still verify its banks or build an engine. If a rank fails,
torchrun stops all others without waiting for this limit."""
MIXED_PRECISION = {"fp32": "no", "bf16": "bf16"}


def world() -> int:
    """Return the number of ranks, without importing torch."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1


def is_main() -> bool:
    """Return whether this rank reads the run's folder, writes and prints, without importing torch."""
    return world() == 1 or os.environ["RANK"] == "0"


def require_divisible(batch_size: int) -> None:
    """Raise UserError if `distill.batch_size` is not a multiple of the number of ranks."""
    count = world()
    if batch_size % count:
        near = max(count, round(batch_size / count) * count)
        raise UserError(
            f"distill.batch_size is {batch_size}, which {count} processes cannot divide equally; "
            f"set it to a multiple of {count}, such as {near}, or start another number of processes"
        )


def require_gpus(available: int) -> None:
    """Raise UserError if this machine has more ranks than GPUs."""
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if world() > 1 else 1
    if local > available:
        raise UserError(
            f"torchrun started {local} processes on this machine, but torch sees {available} GPUs; "
            f"give torchrun --nproc-per-node {available}, or set compute.device to cpu"
        )


def from_main(accelerator: "Accelerator", value: Callable[[], T]) -> T:
    """Call `value` on the main rank only, and return its result on every rank."""
    if accelerator.num_processes == 1:
        return value()
    import torch

    values = [value() if accelerator.is_main_process else None]
    torch.distributed.broadcast_object_list(values, device=accelerator.device)
    received: T = values[0]  # type: ignore[assignment]
    return received


def leave() -> None:
    """Leave the process group, so that this rank and the others no longer wait for each other."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def open_accelerator(config: ComputeConfig) -> "Accelerator":
    """Open the Accelerator of a run. A process can have only one at a time, as Accelerate's state is shared.

    Also sets torch's threads and the implementation of the kernels, keeps freed memory mapped on a CPU, and
    joins the other ranks under torchrun, with NCCL between GPUs and gloo between CPUs.

    Args:
        config: a resolved configuration.

    Raises:
        UserError: if this machine has more ranks than GPUs.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    from export.float32 import use_exact_float32
    from kernels.backend import set_backend

    assert config.is_resolved
    assert config.threads is not None
    set_backend("torch" if config.kernels == "torch" else None)
    if config.device == "cuda":
        require_gpus(torch.cuda.device_count())
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        if config.precision == "fp32":
            use_exact_float32()
    else:
        import kernels

        kernels.retain_freed_memory()
    AcceleratorState._reset_state(reset_partial_state=True)  # or a second run keeps the first one's precision
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=MIXED_PRECISION[config.precision],
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    torch.set_num_threads(config.threads)  # after Accelerate, which sets them when it creates the group
    return accelerator
