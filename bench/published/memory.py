"""The images of a published loop in memory, as 8-bit files would hold them, and the pair of networks."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.models.classifier import Classifier
from engine.models.loading import require_feature


@dataclass(kw_only=True)
class MemoryBank:
    """Images uint8 [N, 3, H, W] and labels int64 [N], which only grow."""

    images: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.labels))

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Append images in [0, 1]."""
        self.images = [torch.cat([*self.images, (images * 255).round().to(torch.uint8)])]
        self.labels = [torch.cat([*self.labels, labels])]

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return `count` different images in [0, 1] and their labels; all of them if there are fewer."""
        rows = torch.randperm(len(self), device=self.labels[0].device)[:count]
        return self.images[0][rows].float() / 255, self.labels[0][rows]


@dataclass(frozen=True, kw_only=True)
class PublishedPair:
    """Teacher and student in float32, in contiguous memory, and nothing of them frozen."""

    teacher: Classifier
    student: Classifier
    size: tuple[int, int]
    """Height and width of the images."""

    @classmethod
    def of(cls, teacher: Classifier, student: Classifier, size: tuple[int, int]) -> "PublishedPair":
        """Prepare the networks, which are changed."""
        for network in (teacher, student):
            network.to(memory_format=torch.contiguous_format).eval().requires_grad_(True)
        return cls(teacher=teacher, student=student, size=size)

    @property
    def device(self) -> torch.device:
        return self.teacher.mean.device

    def random_labels(self, count: int) -> Tensor:
        return torch.randint(self.teacher.num_classes, (count,), device=self.device)


def with_feature_map(classifier: Classifier, section: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function of images [B, 3, H, W] -> (logits, feature map)."""
    path = require_feature(classifier, section)

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, (feature,) = classifier.with_features(images, [path])
        return logits, feature

    return forward


def cosine(lr: float, share: float) -> float:
    """Return the learning rate after this share of the training: a half cosine from `lr` to 0."""
    return lr * (1 + math.cos(math.pi * min(share, 1.0))) / 2
