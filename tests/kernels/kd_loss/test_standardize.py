"""The loss of standardized logits where it differs from that of raw ones; test_kd_loss.py has the rest."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.kd_loss import kd_loss
from kernels.kd_loss.reference import kd_loss_reference
from tests.kernels.kd_loss.cases import EXTREMES, TEMPERATURES, assert_right, draw, run

STANDARDIZED_EXTREMES = {
    "far_apart": EXTREMES["far_apart"],
    "high": EXTREMES["high"],
    "constant_student": ([[7.1] * 33], [[0.1 * i for i in range(33)]]),
    "constant_teacher": ([[0.1 * i for i in range(33)]], [[-1e4] * 33]),
    "both_constant": ([[7.1] * 33], [[-3.3] * 33]),
    "narrow_and_wide": ([[1e-3 * i for i in range(10)]], [[1e3 * (i * i % 7) for i in range(10)]]),
    "one_class": ([[4.0]], [[-2.0]]),
}


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("case", STANDARDIZED_EXTREMES)
def test_extreme_logits_standardized(device: str, case: str, temperature: float) -> None:
    student, teacher = map(torch.tensor, STANDARDIZED_EXTREMES[case])
    label = torch.tensor([student.shape[1] - 1])
    settings = {"temperature": temperature, "standardize": True}
    assert_right(student, teacher, label, device, atol=2e-6, **settings)


def test_two_standardized_classes_have_no_gradient(device: str) -> None:
    """Their z-scores are 1 and -1 whatever the logits are."""
    student, teacher = torch.tensor([[3.0, -2.0]]), torch.tensor([[-1.0, 5.0]])
    sides = student.to(device), teacher.to(device)
    losses, gradients = run(kd_loss, *sides, None, "st", temperature=1.0, standardize=True)
    assert losses.kl.item() == pytest.approx(2 * math.tanh(1.0), rel=1e-6)
    for gradient in gradients:
        assert gradient.abs().max() < 1e-6


def test_standardization_by_hand() -> None:
    student, teacher, labels = draw(6, 11)
    student, teacher = student.double(), teacher.double()

    def z_scores(logits: Tensor) -> Tensor:
        deviation = logits.var(1, unbiased=False, keepdim=True).sqrt()
        return (logits - logits.mean(1, keepdim=True)) / (deviation + 1e-7)

    exact = kd_loss_reference(z_scores(student), z_scores(teacher), temperature=4.0)[1]
    loss = kd_loss(student, teacher, labels, temperature=4.0, w_kl=0.7, w_ce=1.5, standardize=True)
    torch.testing.assert_close(loss.kl, exact)
    torch.testing.assert_close(loss.ce, F.cross_entropy(student, labels))  # of raw logits
    torch.testing.assert_close(loss.total, 0.7 * loss.kl + 1.5 * loss.ce)
    scaled = kd_loss(3 * student + 5, 0.2 * teacher - 1, temperature=4.0, standardize=True)
    torch.testing.assert_close(scaled.kl, exact, rtol=1e-5, atol=0)
