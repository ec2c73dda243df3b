"""The embedded teachers: plain supervised training on the private half."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from engine.config.classifier import ClassifierConfig
from engine.datasets.fashion_mnist import LabeledImages
from engine.models.classifier import Classifier
from engine.models.loading import build_classifier
from engine.pretraining.fit import Fit, fit
from engine.seeding import generator
from kernels.crop_flip import random_crop_flip


@dataclass(frozen=True, kw_only=True)
class TeacherPlan:
    """What differs between the trainings of teachers."""

    epochs: int
    max_lr: float
    crop_padding: int


def train_teacher(
    config: ClassifierConfig,
    data: LabeledImages,
    accelerator: Accelerator,
    checkpoint: Path,
    plan: TeacherPlan,
    *,
    seed: int = 0,
) -> Classifier:
    """Train with cross-entropy, random crops and flips, Nesterov momentum and a one-cycle learning rate."""
    batch_size = 128
    torch.manual_seed(seed)
    classifier = build_classifier(config, "teacher").place(accelerator.device)
    optimizer = torch.optim.SGD(
        classifier.parameters(), plan.max_lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )

    def losses(epoch: int) -> Iterator[Tensor]:
        classifier.train()
        rng = generator(seed, "teacher", epoch)
        order = torch.randperm(len(data.labels), generator=rng)
        for index in order[: len(order) // batch_size * batch_size].split(batch_size):
            images = (
                random_crop_flip(data.images[index], rng, pad=plan.crop_padding)
                .to(accelerator.device)
                .float()
                / 255
            )
            with accelerator.autocast():
                logits = classifier(images)
            yield F.cross_entropy(logits.float(), data.labels[index].to(accelerator.device))

    steps = len(data.labels) // batch_size
    schedule = Fit(epochs=plan.epochs, steps_per_epoch=steps, max_lr=plan.max_lr, seed=seed)
    fit(checkpoint.stem, classifier, optimizer, losses, schedule, checkpoint)
    return classifier.eval()
