"""The losses against formulas written out in float64, without torch's KL divergence."""

import math

import pytest
import torch
from torch import Tensor

from engine.stages.kd_loss import distillation_loss
from engine.stages.synthesis.adversary import kl_adversarial

TEMPERATURES = [1.0, 4.0, 20.0]
TOLERANCES = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-5, 2e-5)}  # dtype: (atol, rtol)


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    labels = torch.zeros(len(student), dtype=torch.long)
    return distillation_loss(student, teacher, labels, temperature=temperature, w_kl=1.0, w_ce=0.0).total


def cross_entropy(logits: Tensor, labels: Tensor, agrees: Tensor | None = None) -> Tensor:
    teacher = logits.detach()
    return distillation_loss(
        logits, teacher, labels, temperature=1.0, w_kl=0.0, w_ce=1.0, agrees=agrees
    ).total


def log_softmax_by_hand(logits: list[float]) -> list[float]:
    top = max(logits)
    total = sum(math.exp(x - top) for x in logits)
    return [x - top - math.log(total) for x in logits]


def kd_by_hand(student: Tensor, teacher: Tensor, temperature: float) -> float:
    kl = 0.0
    for s_row, t_row in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        log_s = log_softmax_by_hand([x / temperature for x in s_row])
        log_t = log_softmax_by_hand([x / temperature for x in t_row])
        kl += sum(math.exp(t) * (t - s) for s, t in zip(log_s, log_t, strict=True))
    return temperature**2 * kl / len(student)


def logits(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, generator=draw, dtype=torch.float64) * 3
    return student, teacher


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (7, 10), (3, 101)])
def test_kd_value(rows: int, classes: int, temperature: float, dtype: torch.dtype) -> None:
    student, teacher = logits(rows, classes)
    atol, rtol = TOLERANCES[dtype]
    ours = kd_loss(student.to(dtype), teacher.to(dtype), temperature)
    assert ours.dtype == dtype
    assert ours.item() == pytest.approx(kd_by_hand(student, teacher, temperature), abs=atol, rel=rtol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (x.to(dtype) for x in logits(5, 10))
    ours = kd_loss(student, teacher, 4.0)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(kd_by_hand(student, teacher, 4.0), rel=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_gradient_of_the_student_is_t_times_the_difference_of_softmaxes(temperature: float) -> None:
    student, teacher = logits(6, 10)
    student.requires_grad_()
    kd_loss(student, teacher, temperature).backward()
    difference = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
    torch.testing.assert_close(student.grad, temperature * difference.detach() / 6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_gradients_of_both_sides(temperature: float) -> None:
    student, teacher = (x.requires_grad_() for x in logits(3, 5))
    assert torch.autograd.gradcheck(lambda s, t: kd_loss(s, t, temperature), (student, teacher))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_does_not_change_when_a_row_is_shifted(temperature: float) -> None:
    student, teacher = logits(4, 10)
    shifted = kd_loss(student + torch.tensor([[100.0], [-7.0], [0.0], [1.0]]), teacher - 50, temperature)
    torch.testing.assert_close(shifted, kd_loss(student, teacher, temperature))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_extreme_logits_stay_finite_and_right(temperature: float) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0]])
    loss = kd_loss(student, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(temperature * 2e4, rel=1e-5)  # the teacher is sure of class 1
    assert student.grad is not None
    torch.testing.assert_close(
        student.grad, temperature * torch.tensor([[1.0, -1.0, 0.0]]), atol=1e-5, rtol=1e-5
    )


def test_kd_of_equal_logits_is_zero() -> None:
    student, _ = logits(4, 10)
    assert kd_loss(student, student, 20.0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "agrees", [[True] * 4, [False] * 4, [True, False, False, True]], ids=["all", "none", "some"]
)
def test_cross_entropy_counts_only_the_rows_that_agree(agrees: list[bool]) -> None:
    student, _ = logits(4, 5)
    student.requires_grad_()
    labels = torch.tensor([0, 4, 2, 2])
    loss = cross_entropy(student, labels, torch.tensor(agrees))
    loss.backward()
    counted = [i for i in range(4) if agrees[i]]
    expected = [-log_softmax_by_hand(student[i].tolist())[labels[i]] for i in counted]
    assert loss.item() == pytest.approx(sum(expected) / max(len(counted), 1), abs=1e-12)
    gradient = torch.zeros(4, 5, dtype=torch.float64)
    for i in counted:
        gradient[i] = student[i].detach().softmax(0)
        gradient[i, labels[i]] -= 1
    torch.testing.assert_close(student.grad, gradient / max(len(counted), 1))


def test_a_row_that_does_not_agree_cannot_spoil_the_loss() -> None:
    student = torch.tensor([[0.0, 0.0], [float("inf"), 0.0]])
    labels, agrees = torch.tensor([0, 1]), torch.tensor([True, False])
    loss = distillation_loss(student, student, labels, temperature=1.0, w_kl=0.0, w_ce=1.0, agrees=agrees).ce
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("with_gate", [True, False], ids=["ce_on_agreement", "ce_on_all"])
def test_total_is_the_weighted_sum_of_its_parts(with_gate: bool) -> None:
    student, teacher = logits(4, 5)
    labels = torch.tensor([0, 1, 2, 3])
    agrees = torch.tensor([True, True, False, True])
    aligned, target = logits(4, 24, seed=1)
    loss = distillation_loss(
        student,
        teacher,
        labels,
        temperature=4.0,
        w_kl=0.5,
        w_ce=2.0,
        w_feature=30.0,
        agrees=agrees if with_gate else None,
        features=[(aligned.view(4, 6, 2, 2), target.view(4, 6, 2, 2))],
    )
    rows = [i for i in range(4) if agrees[i] or not with_gate]
    ce = -sum(log_softmax_by_hand(student[i].tolist())[i] for i in rows) / len(rows)
    feature = ((aligned - target) ** 2).sum().item() / (4 * 6 * 2 * 2)
    assert loss.kl.item() == pytest.approx(kd_by_hand(student, teacher, 4.0))
    assert loss.ce.item() == pytest.approx(ce)
    assert loss.feature.item() == pytest.approx(feature)
    assert loss.total.item() == pytest.approx(0.5 * loss.kl.item() + 2 * ce + 30 * feature)


def test_total_has_the_gradients_of_all_terms_and_the_parts_have_none() -> None:
    student, teacher = logits(3, 4)
    aligned, target = logits(3, 8, seed=1)
    student.requires_grad_()
    aligned.requires_grad_()
    labels, agrees = torch.tensor([0, 1, 3]), torch.tensor([True, False, True])

    def loss(student: Tensor, aligned: Tensor):
        return distillation_loss(
            student,
            teacher,
            labels,
            temperature=20.0,
            w_kl=1.0,
            w_ce=1.0,
            w_feature=30.0,
            agrees=agrees,
            features=[(aligned, target)],
        )

    assert torch.autograd.gradcheck(lambda s, a: loss(s, a).total, (student, aligned))
    assert not any(part.requires_grad for part in loss(student, aligned)[1:])


def test_without_features_the_feature_part_is_zero() -> None:
    student, teacher = logits(3, 4)
    loss = distillation_loss(student, teacher, torch.tensor([0, 1, 3]), temperature=1.0, w_kl=1.0, w_ce=0.0)
    assert loss.feature.item() == 0
    torch.testing.assert_close(loss.total, kd_loss(student, teacher, 1.0))


def test_kl_adversarial_is_minus_the_divergence_from_student_to_teacher() -> None:
    torch.manual_seed(1)
    student = torch.randn(5, 7, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(5, 7, dtype=torch.float64).requires_grad_()
    p, q = student.softmax(1), teacher.softmax(1)
    expected = -(p * (p.log() - q.log())).sum() / 5
    ours = torch.autograd.grad(kl_adversarial(student, teacher), [student, teacher])
    theirs = torch.autograd.grad(expected, [student, teacher])
    torch.testing.assert_close(kl_adversarial(student, teacher).double(), expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_kl_adversarial_falls_as_the_logits_move_apart() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    same, apart = kl_adversarial(logits, logits), kl_adversarial(logits, -logits)
    assert abs(float(same)) < 1e-6
    assert apart < same
