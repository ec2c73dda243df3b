"""A classifier that cannot be traced runs through modules of its own around the same weights."""

import pytest
import torch
from torch import Tensor, nn

from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.distributed import open_accelerator
from engine.models.classifier import Classifier
from engine.runtime.torch import FusedClassifier


class Branching(nn.Module):
    """No graph can be had."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.fc(h.mean((2, 3)) if h.sum() > 0 else h.amax((2, 3)))


def test_no_hook_of_a_question_is_on_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = open_accelerator(resolve_compute(ComputeConfig(device="cpu", precision="fp32", threads=2)))
    network = Branching()
    teacher = Classifier(network, num_classes=2, in_channels=3, mean=(0.0,), std=(1.0,), feature_path="conv")
    teacher.eval().requires_grad_(False)
    forward, images = FusedClassifier(teacher, ["network.conv"], accelerator), torch.rand(2, 3, 8, 8)
    hooks = []
    own = nn.functional.conv2d

    def look(*arguments: object) -> Tensor:
        hooks.append(len(network.conv._forward_hooks))
        return own(*arguments)

    with torch.no_grad():
        expected = teacher(images)
        with monkeypatch.context() as patch:
            patch.setattr(nn.functional, "conv2d", look)
            outputs = forward(images=images)
        assert hooks == [0]
        torch.testing.assert_close(outputs["logits"], expected)
        torch.testing.assert_close(outputs["network.conv"], network.conv(images))
        network.fc.bias += 1
        torch.testing.assert_close(forward(images=images)["logits"], expected + 1)
