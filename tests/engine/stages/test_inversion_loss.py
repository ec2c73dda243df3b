"""Inversion terms against formulas written out in float64, values and gradients."""

import torch

from engine.stages.inversion_loss import kl_adversarial


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


def test_kl_adversarial_falls_as_the_two_part() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    same, apart = kl_adversarial(logits, logits), kl_adversarial(logits, -logits)
    assert abs(float(same)) < 1e-6
    assert apart < same
