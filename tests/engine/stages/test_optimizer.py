"""The student's optimizer against torch's SGD and a float64 version of Muon."""

import pytest
import torch
from torch import Tensor, nn

from engine.config.distill import DistillConfig
from engine.models.networks import wrn_16_1
from engine.stages.optimizer import (
    COEFFICIENTS,
    ITERATIONS,
    MOMENTUM,
    StudentSgd,
    hidden_weights,
    orthogonalized,
)

MUON = DistillConfig(optimizer="muon", muon_lr=0.05, lr=0.1, weight_decay=1e-3, nesterov=True)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=2), nn.Flatten(),
        nn.Linear(24, 5), nn.Linear(5, 2),
    )  # fmt: skip


def backward(module: nn.Module, seed: int) -> None:
    module.zero_grad()
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    module(images).square().mean().backward()


@pytest.mark.parametrize("shape", [(16, 144), (64, 16), (7, 7), (1, 9), (5, 1)])
def test_orthogonalized_keeps_the_singular_vectors_and_levels_the_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    inner = u.mT @ orthogonalized(matrix).double() @ vh.mT
    values = inner.diagonal()
    assert (inner - torch.diag(values)).abs().max() < 1e-4
    assert values.min() > 0.1
    assert values.max() < 1.6


def test_a_gradient_of_zeros_gives_an_update_of_zeros() -> None:
    assert orthogonalized(torch.zeros(3, 4)).tolist() == [[0.0] * 4] * 3


def test_hidden_weights_are_whole_layers_between_the_first_and_the_last() -> None:
    layers = network()
    assert [id(weight) for weight in hidden_weights(layers)] == [id(layers[1].weight), id(layers[5].weight)]
    student = wrn_16_1(10, 1)
    names = {id(weight): name for name, weight in student.named_parameters()}
    found = [names[id(weight)] for weight in hidden_weights(student)]
    assert len(found) == 14
    assert all(name.startswith("stages.") for name in found)
    assert hidden_weights(nn.Linear(3, 4)) == []


def test_heads_and_weights_that_the_outer_layers_share_are_not_hidden() -> None:
    layers = network()
    layers.num_classes = 5
    assert [id(weight) for weight in hidden_weights(layers)] == [id(layers[1].weight)]
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    tied[1].weight = tied[0].weight
    assert [id(weight) for weight in hidden_weights(tied)] == [id(tied[2].weight)]


def test_sgd_is_torchs() -> None:
    ours, theirs = network(), network()
    config = DistillConfig(lr=0.1, weight_decay=1e-3, nesterov=True)
    mine = StudentSgd(ours, ours, config)
    reference = torch.optim.SGD(theirs.parameters(), 0.1, 0.9, weight_decay=1e-3, nesterov=True)
    for step in range(4):
        for group in reference.param_groups:
            group["lr"] = 0.1 / (step + 1)
        mine.set_rate(1 / (step + 1))
        for module, optimizer in ((ours, mine), (theirs, reference)):
            backward(module, step)
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def reference_update(weight: Tensor, gradient: Tensor, mean: Tensor, rate: float) -> Tensor:
    mean.mul_(MOMENTUM).add_(gradient)
    x = (gradient + MOMENTUM * mean).flatten(1)
    x = x / x.norm()
    wide = len(x) <= x.shape[1]
    x = x if wide else x.mT
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x if wide else x.mT
    return weight * len(weight) ** 0.5 / weight.norm() - rate * x.view_as(weight)


def test_muon_follows_the_float64_reference() -> None:
    student = network()
    optimizer = StudentSgd(student, student, MUON)
    weights = hidden_weights(student)
    expected = [weight.detach().double() for weight in weights]
    means = [torch.zeros_like(weight) for weight in expected]
    for step in range(3):
        optimizer.set_rate(0.5)
        backward(student, step)
        expected = [
            reference_update(old, weight.grad.double(), mean, 0.025)
            for old, weight, mean in zip(expected, weights, means, strict=True)
            if weight.grad is not None
        ]
        optimizer.step()
        for weight, right in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight.detach().double(), right, rtol=1e-5, atol=1e-6)


def test_a_hidden_weight_without_a_gradient_stays() -> None:
    student = network()
    optimizer = StudentSgd(student, student, MUON)
    backward(student, 0)
    student[1].weight.grad = None
    before = student[1].weight.detach().clone()
    optimizer.step()
    assert torch.equal(student[1].weight, before)


def test_a_saved_state_continues_exactly() -> None:
    whole, part = network(), network()
    one, other = StudentSgd(whole, whole, MUON), StudentSgd(part, part, MUON)
    for step in range(2):
        for module, optimizer in ((whole, one), (part, other)):
            backward(module, step)
            optimizer.step()
    again = network()
    again.load_state_dict(part.state_dict())
    resumed = StudentSgd(again, again, MUON)
    resumed.load_state_dict(other.state_dict())
    for module, optimizer in ((whole, one), (again, resumed)):
        backward(module, 2)
        optimizer.step()
    for right, found in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(right, found)
