"""Inversion terms against formulas written out in float64, values and gradients."""

import pytest
import torch
from torch import Tensor, nn

from engine.stages.inversion_loss import batch_norm_loss, kl_adversarial


def layer_with(mean: Tensor, var: Tensor) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(mean)).eval()
    layer.running_mean, layer.running_var = mean, var
    return layer


def written_out(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    values = x.double().permute(1, 0, 2, 3).reshape(x.shape[1], -1)
    batch_mean = values.sum(1) / values.shape[1]
    batch_var = ((values - batch_mean[:, None]) ** 2).sum(1) / values.shape[1]
    return ((batch_var - var.double()) ** 2).sum().sqrt() + ((batch_mean - mean.double()) ** 2).sum().sqrt()


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (9, 1, 1, 1), (1, 4, 2, 2)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "offset"])
def test_batch_norm_loss_is_the_sum_of_both_norms_over_layers(shape: tuple[int, ...], offset: float) -> None:
    torch.manual_seed(0)
    inputs, expected, xs = [], torch.zeros((), dtype=torch.float64), []
    for _ in range(2):
        x = (torch.randn(shape) + offset).requires_grad_()
        mean, var = torch.randn(shape[1]), torch.rand(shape[1]) + 0.5
        inputs.append((layer_with(mean, var), x))
        reference = x.detach().double().requires_grad_()
        expected = expected + written_out(reference, mean, var)
        xs.append((x, reference))
    loss = batch_norm_loss(inputs)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    for x, reference in xs:
        assert x.grad is not None
        torch.testing.assert_close(x.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)


def test_batch_norm_loss_is_zero_only_where_the_statistics_match() -> None:
    x = torch.randn(8, 3, 4, 4)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    assert batch_norm_loss([(layer_with(mean, var), x)]) < 1e-5
    assert batch_norm_loss([(layer_with(mean, var), x + 1)]) > 1


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
