"""The rotation adversary: its targets, its head, and the direction of its gradients."""

import pytest
import torch
from accelerate import Accelerator

from engine.models.classifier import Classifier
from engine.models.networks import wrn_16_1
from engine.stages.synthesis.adversary import RotationAdversary, RotationHead, rotations


@pytest.fixture
def student() -> Classifier:
    torch.manual_seed(0)
    network = wrn_16_1(3)
    return Classifier(
        network, num_classes=3, in_channels=3, mean=[0.5], std=[0.5], feature_path="relu"
    ).eval()


@pytest.fixture
def adversary(student: Classifier) -> RotationAdversary:
    return RotationAdversary(student, (16, 16), 0, Accelerator(cpu=True, mixed_precision="no"))


def test_rotations_are_the_four_quarter_turns_with_joint_labels() -> None:
    images, labels = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4), torch.tensor([2, 0])
    turned, joint = rotations(images, labels)
    assert joint.tolist() == [8, 0, 9, 1, 10, 2, 11, 3]
    once = images
    for turn in range(4):
        torch.testing.assert_close(turned[2 * turn : 2 * turn + 2], once)
        once = once.transpose(2, 3).flip(2)


def test_quarter_turns_of_images_that_are_not_square_are_resized() -> None:
    images = torch.zeros(1, 1, 4, 8)
    images[..., :4] = 1  # the left half is bright
    turned, joint = rotations(images, torch.tensor([1]))
    assert turned.shape == (4, 1, 4, 8)
    assert joint.tolist() == [4, 5, 6, 7]
    torch.testing.assert_close(turned[0], images[0])
    torch.testing.assert_close(turned[2], images[0].flip(1, 2))
    bright = [(turned[turn, 0].mean(1), turned[turn, 0].mean(0)) for turn in (1, 3)]
    for rows, columns in bright:
        assert columns.std() < 1e-6, "left and right have become top and bottom"
        assert rows.std() > 0.4
    assert bright[0][0].argmax() > 1 > bright[1][0].argmax(), "counterclockwise, left comes to the bottom"


def test_head_gives_unit_logits() -> None:
    logits = RotationHead(5, 3)(torch.randn(7, 5))
    assert logits.shape == (7, 12)
    torch.testing.assert_close(logits.norm(dim=1), torch.ones(7))


def test_learning_improves_the_head_and_leaves_the_student_alone(adversary: RotationAdversary) -> None:
    labels = torch.arange(32) % 3
    images = 0.1 * torch.rand(32, 3, 16, 16)
    images[:, :, :6] += 0.3 * (1 + labels[:, None, None, None])  # the top is bright, by class
    before = {name: value.clone() for name, value in adversary.student.state_dict().items()}
    first = adversary.adversarial_term()(images[:8], labels[:8]).detach()
    for _ in range(200):
        adversary.learn(images, labels)
    last = adversary.adversarial_term()(images[:8], labels[:8]).detach()
    assert last > first + 0.1, "minus a smaller cross-entropy"
    for name, value in adversary.student.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_term_is_minus_the_cross_entropy_and_reaches_the_images(
    adversary: RotationAdversary,
) -> None:
    images, labels = torch.rand(4, 3, 16, 16).requires_grad_(), torch.tensor([0, 1, 2, 0])
    loss = adversary.adversarial_term()(images, labels)
    turned, joint = rotations(images, labels)
    network = adversary.student.network
    x = (turned - 0.5) / 0.5
    features = network.relu(network.bn(network.stages(network.conv1(x)))).mean((2, 3))
    log_p = adversary.head(features).double().log_softmax(1)
    torch.testing.assert_close(loss.double(), log_p[torch.arange(16), joint].mean(), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, images)
    assert gradient.abs().sum() > 0


def test_restart_forgets_and_is_a_function_of_the_round(adversary: RotationAdversary) -> None:
    adversary.restart(3)
    once = adversary.head.layers[0].weight.clone()
    adversary.learn(torch.rand(8, 3, 16, 16), torch.arange(8) % 3)
    assert not torch.equal(adversary.head.layers[0].weight, once)
    adversary.restart(3)
    assert torch.equal(adversary.head.layers[0].weight, once)
    adversary.restart(4)
    assert not torch.equal(adversary.head.layers[0].weight, once)
