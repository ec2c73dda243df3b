"""The classifiers of the benches: a teacher and WRN-16-1 with random weights at 32x32."""

from collections.abc import Callable

import torch
from torch import Tensor

from engine.models.classifier import Classifier
from engine.models.features import forward_with_features
from engine.models.networks import wrn_16_1, wrn_16_2, wrn_40_2

CLASSES, SIZE = 10, 32
FEATURE = "network.relu"
"""Path of the feature map that distillation uses."""


TEACHERS = {"WRN-40-2": wrn_40_2, "WRN-16-2": wrn_16_2}


def pair(device: torch.device, name: str = "WRN-40-2") -> tuple[Classifier, Classifier]:
    """Return teacher and student in eval mode, contiguous, with the same weights at each call."""
    torch.manual_seed(0)
    networks = TEACHERS[name](CLASSES), wrn_16_1(CLASSES)
    teacher, student = (
        Classifier(
            network, num_classes=CLASSES, in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, feature_path="relu"
        )
        for network in networks
    )
    return teacher.to(device).eval(), student.to(device).eval()


def feature_forward(classifier: Classifier) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function of images [B, 3, H, W] -> (logits, feature map)."""

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, (feature,) = forward_with_features(classifier, images, [FEATURE])
        return logits, feature

    return forward
