"""The processes of one training on several devices, as torchrun starts them; each is a rank."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from engine.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

TIMEOUT = timedelta(hours=1)
"""Of a wait for another rank, which may still verify its banks or build an engine. torchrun itself ends all
ranks when one has ended with an error."""


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
