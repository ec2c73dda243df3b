"""Logits for the tests of the loss, and a function that runs it or its reference."""

from typing import Any

import torch
from torch import Tensor

from kernels.kd_loss import KdLoss

DTYPES = [  # student, teacher
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float32),
]


def draw(
    rows: int, classes: int, *, spread: float = 3.0, apart: float = 3.0, seed: int = 0
) -> tuple[Tensor, ...]:
    """Draw student, teacher (`apart` from the student) and labels; from two rows on, one is ignored."""
    generator = torch.Generator().manual_seed(seed)
    student, noise = torch.randn(2, rows, classes, generator=generator)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    labels[1:2] = -100
    return spread * student, spread * student + apart * noise, labels


def run(
    function: Any, student: Tensor, teacher: Tensor, labels: Tensor | None, wanted: str, **settings: Any
) -> tuple[KdLoss, list[Tensor]]:
    """Return the losses, detached, and the gradients of total for the sides in `wanted`, s and t."""
    sides = {"s": student, "t": teacher}
    leaves = {name: side.detach().requires_grad_(name in wanted) for name, side in sides.items()}
    losses = KdLoss(*function(leaves["s"], leaves["t"], labels, **settings))
    gradients = torch.autograd.grad(losses.total, [leaves[name] for name in wanted]) if wanted else ()
    return KdLoss(*(loss.detach() for loss in losses)), list(gradients)


def ids(dtypes: tuple[torch.dtype, torch.dtype]) -> str:
    return "-".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
