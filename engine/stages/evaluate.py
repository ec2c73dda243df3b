"""Measure accuracies and agreement on labelled images, classifiers always in float32."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.models.classifier import Classifier
from export.float32 import exact_float32

Logits = Callable[[Tensor], Tensor]
"""Maps images uint8 [B, 3, H, W] to logits [B, C]."""
TOP = 5
"""Classes that count for top-5; it is not measured with fewer than six."""
MIN_JUDGED = 50
"""Fewer test images say too little about a network."""
ADVICE = {
    "teacher": "check teacher.image_size, teacher.mean, teacher.std and the order of class_names",
    "student": "train it longer, on more images",
}


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of images, in [0, 1], that one network classifies correctly."""

    top1: float
    top5: float | None
    """Share with the label among the five largest logits; None with fewer than six classes."""
    by_class: tuple[float | None, ...]
    """Top-1 of the images of each class; None if the class has none."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The accuracies of networks on one set of images."""

    images: int
    images_by_class: tuple[int, ...]
    accuracies: dict[str, Accuracy]
    """By network."""
    agreement: float | None
    """Share of images for which the first two networks have the same top-1 class; None for one network."""

    @property
    def warning(self) -> str | None:
        """What is wrong if teacher or student is right no more often than one constant answer, else None."""
        constant = max(self.images_by_class) / self.images
        if constant == 1:
            return None
        for name, advice in ADVICE.items():
            found = self.accuracies.get(name)
            if self.images >= MIN_JUDGED and found is not None and found.top1 <= constant:
                return (
                    f"the {name} is right on {found.top1:.1%} of the test images, and a constant answer on "
                    f"{constant:.1%}; {advice}"
                )
        return None

    def shares(self) -> dict[str, float | None]:
        """Return NETWORK_top1 and NETWORK_top5 of each network, and the agreement."""
        top1 = {f"{name}_top1": found.top1 for name, found in self.accuracies.items()}
        top5 = {f"{name}_top5": found.top5 for name, found in self.accuracies.items()}
        return {**top1, **top5, "agreement": self.agreement}

    def per_class(self, class_names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """Return, for each class, the number of its images and the top-1 of each network on them.

        A name that occurs twice gets its index.
        """
        twice = {name for name, count in Counter(class_names).items() if count > 1}
        return {
            f"{name} ({index})" if name in twice else name: {
                "images": self.images_by_class[index],
                **{network: found.by_class[index] for network, found in self.accuracies.items()},
            }
            for index, name in enumerate(class_names)
        }


def evaluate(
    networks: Mapping[str, Logits],
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Measure the networks, by name, on images uint8 [B, 3, H, W] with labels int64 [B], at least one.

    `advance` is called with the size of each batch when it is done.
    """
    total = torch.zeros(num_classes, dtype=torch.int64)
    top1, top5 = ({name: torch.zeros_like(total) for name in networks} for _ in range(2))
    agreeing = 0
    for images, labels in batches:
        predicted = {}
        for name, network in networks.items():
            logits = network(images).cpu()
            if len(logits) != len(labels):
                raise ValueError(f"{len(logits)} predictions against {len(labels)}")
            predicted[name] = logits.argmax(1)
            top1[name] += _count(labels[predicted[name] == labels], num_classes)
            among_top = (logits.topk(min(TOP, num_classes)).indices == labels[:, None]).any(1)
            top5[name] += _count(labels[among_top], num_classes)
        if len(networks) > 1:
            first, second, *_ = predicted.values()
            agreeing += int((first == second).sum())
        total += _count(labels, num_classes)
        advance(len(labels))
    images_measured = int(total.sum())
    if not images_measured:
        raise ValueError("there are no images to evaluate on")
    return Evaluation(
        images=images_measured,
        images_by_class=tuple(total.tolist()),
        accuracies={
            name: Accuracy(
                top1=int(top1[name].sum()) / images_measured,
                top5=int(top5[name].sum()) / images_measured if num_classes > TOP else None,
                by_class=tuple(
                    hits / count if count else None
                    for hits, count in zip(top1[name].tolist(), total.tolist(), strict=True)
                ),
            )
            for name in networks
        },
        agreement=agreeing / images_measured if len(networks) > 1 else None,
    )


def _count(labels: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(labels, minlength=num_classes)


@contextmanager
def in_float32(
    classifiers: Mapping[str, Classifier], accelerator: Accelerator
) -> Iterator[dict[str, Logits]]:
    """Yield the classifiers, by name, as functions of uint8 images, in eval mode and without gradients.

    Moves them to the accelerator's device; every module gets its train or eval mode back.
    """
    device = accelerator.device

    def logits_of(classifier: Classifier) -> Logits:
        classifier.to(device)
        return lambda images: classifier(
            images.to(device).to(memory_format=torch.channels_last).float() / 255
        )

    autocast_off = torch.autocast(device.type, enabled=False)
    with torch.no_grad(), autocast_off, exact_float32(), _eval_mode(classifiers.values()):
        yield {name: logits_of(classifier) for name, classifier in classifiers.items()}


def accuracy(
    classifier: Classifier, images: Tensor, labels: Tensor, accelerator: Accelerator, batch_size: int = 500
) -> float:
    """Return the share of images, uint8 [N, 3, H, W], N > 0, whose top-1 class is the label, int64 [N]."""
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    with in_float32({"": classifier}, accelerator) as networks:
        return evaluate(networks, batches, classifier.num_classes).accuracies[""].top1


@contextmanager
def _eval_mode(modules: Iterable[Classifier]) -> Iterator[None]:
    before: list[tuple[nn.Module, bool]] = [(m, m.training) for root in modules for m in root.modules()]
    try:
        for root in modules:
            root.eval()
        yield
    finally:
        for module, training in before:
            module.training = training
