"""Logits for the tests of the loss, and functions that run it and compare it with its reference."""

import os
from typing import Any

import torch
from torch import Tensor

from kernels.backend import backend_for
from kernels.kd_loss import KdLoss, kd_loss
from kernels.kd_loss.reference import kd_loss_reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TOLERANCES = {  # dtype of the logits: (atol, rtol) of the gradient, atol as a fraction of the largest element
    torch.float32: (1e-6, 1e-5),
    torch.bfloat16: (1e-6, 4e-3),
    torch.float16: (1e-4, 1e-3),
}
LOSS_TOLERANCE = {"atol": 1e-7, "rtol": 2e-6}  # float32 whatever the logits are
TEMPERATURES = [1.0, 4.0, 20.0]
EXTREMES = {
    "far_apart": ([[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]),
    "high": ([[1e4, 1e4 - 1, 1e4 + 1]], [[1e4, 1e4, 1e4 - 2]]),
    "one_hot": ([[0.0, 60.0, 0.0, 0.0]], [[80.0, 0.0, 0.0, 0.0]]),
    "all_equal": ([[7.0] * 33], [[-3.0] * 33]),
    "teacher_one_hot_student_flat": ([[0.0] * 20], [[1e4, *[0.0] * 19]]),
}
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


def interpreted() -> bool:
    """Return whether the backend under test is Triton's interpreter: slow, and truncating to bfloat16."""
    return INTERPRETED and backend_for(torch.zeros(1)) == "triton"


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """Return (atol, rtol) for the backend under test."""
    atol, rtol = TOLERANCES[dtype]
    return atol, 2 * rtol if interpreted() and dtype == torch.bfloat16 else rtol


def assert_right(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    device: str,
    wanted: str = "st",
    atol: float = 1e-8,
    **settings: Any,
) -> None:
    on_device = [None if x is None else x.to(device) for x in (student, teacher, labels)]
    losses, gradients = run(kd_loss, *on_device, wanted, **settings)  # type: ignore[call-arg]
    exact, exact_gradients = run(
        kd_loss_reference, student.double(), teacher.double(), labels, wanted, **settings
    )
    for name, loss, expected in zip(KdLoss._fields, losses, exact, strict=True):
        assert loss.dtype == torch.float32, name
        torch.testing.assert_close(
            loss.cpu().double(), expected, **LOSS_TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )
    sides = {"s": student, "t": teacher}
    for name, gradient, expected in zip(wanted, gradients, exact_gradients, strict=True):
        assert gradient.dtype == sides[name].dtype
        fraction, rtol = tolerances(gradient.dtype)
        torch.testing.assert_close(
            gradient.cpu().double(),
            expected,
            atol=atol + fraction * float(expected.abs().max()),
            rtol=rtol,
            msg=lambda m, n=name: f"gradient of {n}: {m}",
        )
