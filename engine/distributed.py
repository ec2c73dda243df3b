"""The processes of one training on several devices, as torchrun starts them; each is a rank.

`open_accelerator` opens the device of one process, alone or as a rank."""

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
"""Of a wait for another rank, which may still verify its banks or build an engine. torchrun itself ends all
ranks when one has ended with an error."""
MIXED_PRECISION = {"fp32": "no", "bf16": "bf16"}


def world() -> int:
    """Number of ranks, before torch is imported."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1


def is_main() -> bool:
    """Whether this is the one that reads the run's folder, writes and prints; before torch is imported."""
    return world() == 1 or os.environ["RANK"] == "0"


def require_divisible(batch_size: int) -> None:
    """Raises UserError for a `distill.batch_size` of which the ranks cannot have equal parts."""
    count = world()
    if batch_size % count:
        near = max(count, round(batch_size / count) * count)
        raise UserError(
            f"distill.batch_size is {batch_size}, which {count} processes cannot share alike; "
            f"set it to a multiple of {count}, such as {near}, or start another number of processes"
        )


def require_gpus(available: int) -> None:
    """Raises UserError for more ranks on this machine than it has GPUs."""
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if world() > 1 else 1
    if here > available:
        raise UserError(
            f"{here} processes were started on a machine where torch sees {available} GPUs; "
            f"give torchrun --nproc-per-node {available}, or take --compute.device cpu"
        )


def from_main(accelerator: "Accelerator", value: Callable[[], T]) -> T:
    """On every rank what `value()` is on the main one, which alone calls it."""
    if accelerator.num_processes == 1:
        return value()
    import torch

    sent = [value() if accelerator.is_main_process else None]
    torch.distributed.broadcast_object_list(sent, device=accelerator.device)
    received: T = sent[0]  # type: ignore[assignment]
    return received


def leave() -> None:
    """Ends what the ranks do together: none waits for another from here on."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def open_accelerator(config: ComputeConfig) -> "Accelerator":
    """Open the Accelerator of a run, whose configuration must be resolved.

    Sets torch's threads and the kernels' implementation, and on a CPU keeps freed memory mapped for reuse. In
    a process that torchrun has started it joins the group of all ranks, by NCCL between GPUs, by gloo between
    CPUs. Raises UserError for more ranks than GPUs.

    One run at a time in a process: Accelerate's state is shared, and the last call owns it.
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
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # else a second run keeps the first one's precision
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=MIXED_PRECISION[config.precision],
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    torch.set_num_threads(
        config.threads
    )  # where it makes the group of several ranks, Accelerate sets them, too
    return accelerator
