"""Measure top-1 accuracy and agreement, always in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.models.classifier import Classifier
from export.float32 import exact_float32


class Evaluation(NamedTuple):
    """Shares of one image set, in [0, 1]."""

    teacher_top1: float
    student_top1: float
    agreement: float


def predict(
    classifiers: list[Classifier], images: Tensor, accelerator: Accelerator, batch_size: int = 500
) -> Tensor:
    """Return the top-1 class of each classifier for each image: int64 [len(classifiers), N] on the CPU.

    Images are uint8 [N, 3, H, W]. Moves the classifiers to the accelerator's device; every module keeps its
    train or eval mode.
    """
    device = accelerator.device
    found = []
    in_float32 = torch.autocast(device.type, enabled=False)
    with torch.no_grad(), in_float32, exact_float32(), _eval_mode(classifiers):
        for classifier in classifiers:
            classifier.to(device)
        for batch in images.split(batch_size):
            pixels = batch.to(device).to(memory_format=torch.channels_last).float() / 255
            found.append(torch.stack([classifier(pixels).argmax(1) for classifier in classifiers]))
    return torch.cat(found, 1).cpu()


def accuracy(
    classifier: Classifier, images: Tensor, labels: Tensor, accelerator: Accelerator, batch_size: int = 500
) -> float:
    """Return the share of images, uint8 [N, 3, H, W], N > 0, whose top-1 class is the label, int64 [N]."""
    return _share_equal(predict([classifier], images, accelerator, batch_size)[0], labels)


def evaluate(
    teacher: Classifier,
    student: Classifier,
    images: Tensor,
    labels: Tensor,
    accelerator: Accelerator,
    batch_size: int = 500,
) -> Evaluation:
    """Return both accuracies and the agreement for images uint8 [N, 3, H, W] with labels int64 [N]."""
    of_teacher, of_student = predict([teacher, student], images, accelerator, batch_size)
    return Evaluation(
        teacher_top1=_share_equal(of_teacher, labels),
        student_top1=_share_equal(of_student, labels),
        agreement=_share_equal(of_teacher, of_student),
    )


def _share_equal(a: Tensor, b: Tensor) -> float:
    if not len(a) == len(b) > 0:
        raise ValueError(f"{len(a)} predictions against {len(b)}")
    return (a == b.cpu()).double().mean().item()


@contextmanager
def _eval_mode(modules: list[Classifier]) -> Iterator[None]:
    before: list[tuple[nn.Module, bool]] = [(m, m.training) for root in modules for m in root.modules()]
    try:
        for root in modules:
            root.eval()
        yield
    finally:
        for module, training in before:
            module.training = training
