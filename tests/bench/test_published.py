"""The baselines do the work that they represent."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.published.hooks import attach
from bench.published.steps import PublishedDistillation, PublishedSynthesis, augment
from engine.models.align import AlignHead
from engine.models.generator import Generator
from engine.models.networks import wrn_16_1
from engine.stages.synthesis.adversary import RotationHead
from kernels.bn_stats.reference import bn_stats_reference


def test_the_hook_measures_the_same_as_bn_stats() -> None:
    layer, x = nn.BatchNorm2d(3).eval(), torch.randn(4, 3, 5, 5)
    (hook,) = attach(nn.Sequential(layer))
    layer(x)
    _, expected = bn_stats_reference(x, layer.weight, layer.bias, layer.running_mean, layer.running_var)
    torch.testing.assert_close(hook.loss, expected)


def test_augment_crops_and_flips_each_image() -> None:
    torch.manual_seed(0)
    images = torch.arange(1.0, 17).view(1, 1, 4, 4).expand(50, 1, 4, 4)
    padded = F.pad(images[0], (4, 4, 4, 4))
    views = [padded[:, t : t + 4, left : left + 4] for t in range(9) for left in range(9)]
    possible = {tuple(v.flatten().tolist()) for view in views for v in (view, view.flip(-1))}
    made = {tuple(image.flatten().tolist()) for image in augment(images)}
    assert made <= possible
    assert len(made) > 20


@pytest.mark.parametrize("rotation", [True, False])
def test_a_synthesis_step_lowers_its_loss(rotation: bool) -> None:
    torch.manual_seed(0)
    teacher, student = wrn_16_1(4).eval(), wrn_16_1(4).eval()

    def student_map(images: Tensor) -> Tensor:
        return student.stages(student.conv1(images))

    hooks, labels = attach(teacher), torch.arange(8) % 4
    step = PublishedSynthesis(
        teacher,
        hooks,
        Generator(size=(16, 16)),
        torch.randn(8, 256),
        labels,
        student_map=student_map if rotation else None,
        head=RotationHead(64, 4) if rotation else None,
    )
    step.step()
    first = step.best_loss
    for _ in range(5):
        step.step()
    assert step.best_loss < first
    assert step.best_images is not None
    assert step.best_images.shape == (8, 3, 16, 16)


def test_a_distillation_step_trains_the_student_and_its_head() -> None:
    torch.manual_seed(0)
    teacher, student, align = wrn_16_1(4).eval(), wrn_16_1(4), AlignHead(64, 64)

    def taps(network: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return lambda x: (network(x), network.relu(network.bn(network.stages(network.conv1(x)))))

    step = PublishedDistillation(
        taps(teacher), taps(student), align, [*student.parameters(), *align.parameters()]
    )
    before = [p.clone() for p in (student.fc.weight, align.conv3.weight)]
    losses = [step.step(torch.rand(8, 3, 16, 16), torch.arange(8) % 4) for _ in range(2)]
    assert all(loss > 0 for loss in losses)
    assert not any(
        torch.equal(a, b) for a, b in zip(before, (student.fc.weight, align.conv3.weight), strict=True)
    )
