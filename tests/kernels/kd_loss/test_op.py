"""The registered op: which results carry a gradient, what is refused, opcheck and torch.compile."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.kd_loss import kd_loss
from tests.kernels.kd_loss.cases import DTYPES, draw, ids


def test_only_total_carries_a_gradient_and_only_if_gradients_are_on() -> None:
    student, teacher, labels = draw(3, 7)
    student.requires_grad_()
    losses = kd_loss(student, teacher, labels, temperature=4.0)
    assert [loss.requires_grad for loss in losses] == [True, False, False]
    with torch.no_grad():
        assert not kd_loss(student, teacher, labels, temperature=4.0).total.requires_grad


def test_nothing_is_allocated_for_outputs_without_gradient() -> None:
    """Materialized gradients of the saved gradients would be two more tensors [B, C]."""
    student, teacher, labels = draw(64, 1000)
    student.requires_grad_()
    teacher.requires_grad_()
    total = kd_loss(student, teacher, labels, temperature=4.0).total
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        torch.autograd.grad(total, [student, teacher])
    allocated = sum(event.self_cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0)
    assert allocated < student.nbytes


def test_second_derivatives_are_refused() -> None:
    student, teacher, _ = draw(3, 7)
    student.requires_grad_()
    total = kd_loss(student, teacher, temperature=4.0).total
    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.autograd.grad(total, student, create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_logits": torch.zeros(3, 8)}, r"both be \[B, C\], not \[3, 7\] and \[3, 8\]"),
        ({"student_logits": torch.zeros(3, 7, 1)}, r"both be \[B, C\]"),
        ({"teacher_logits": torch.zeros(3, 7, dtype=torch.int64)}, "floating point, not .*int64"),
        ({"labels": torch.zeros(3, dtype=torch.int32)}, r"int64 \[3\], not torch.int32 \[3\]"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"int64 \[3\], not torch.int64 \[4\]"),
        (
            {"teacher_logits": torch.zeros(3, 7, device="meta")},
            "on one device, not cpu and meta$",
        ),
        (
            {"labels": torch.zeros(3, dtype=torch.int64, device="meta")},
            "on one device, not cpu and cpu and meta$",
        ),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"label_smoothing": 1.5}, "label_smoothing must lie between 0 and 1"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    student, teacher, _ = draw(3, 7)
    arguments = {"student_logits": student, "teacher_logits": teacher, "temperature": 4.0} | change
    with pytest.raises(ValueError, match=message):
        kd_loss(**arguments)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("wanted", ["", "s", "st"])
@pytest.mark.parametrize("standardize", [False, True], ids=["raw", "standardized"])
@pytest.mark.parametrize("dtypes", DTYPES[:3], ids=ids)
def test_opcheck(dtypes: tuple[torch.dtype, torch.dtype], standardize: bool, wanted: str) -> None:
    student, teacher, labels = draw(3, 7)
    student = student.to(dtypes[0]).requires_grad_("s" in wanted)
    teacher = teacher.to(dtypes[1]).requires_grad_("t" in wanted)
    settings = (4.0, 0.7, 1.5, 0.1, -100, standardize, "s" in wanted, "t" in wanted)
    for target in (labels, None):
        torch.library.opcheck(torch.ops.kernels.kd_loss.default, (student, teacher, target, *settings))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
def test_compiled_whole(dynamic: bool) -> None:
    @torch.compile(fullgraph=True, dynamic=dynamic)
    def step(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        losses = kd_loss(2 * student, teacher, labels, temperature=4.0)
        return losses.total + losses.kl

    for rows in (3, 5):
        student, teacher, labels = draw(rows, 7)
        gradients = []
        for function in (step, step.__wrapped__):  # type: ignore[attr-defined]
            leaf = student.detach().requires_grad_()
            gradients.append(torch.autograd.grad(3 * function(leaf, teacher, labels), leaf)[0])
        torch.testing.assert_close(*gradients)


@pytest.mark.gpu
def test_captured_in_a_graph() -> None:
    student, teacher, labels = (x.cuda() for x in draw(41, 1271))
    student.requires_grad_()

    def step() -> Tensor:
        return torch.autograd.grad(kd_loss(student, teacher, labels, temperature=4.0).total, student)[0]

    expected = step()  # compiles the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, expected)
