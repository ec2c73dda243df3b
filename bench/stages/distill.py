"""Distillation into WRN-16-1, with the alignment head, and on stored outputs of the teacher without it."""

from functools import partial

import torch
from accelerate import Accelerator

from bench.published.hooks import attach
from bench.published.steps import PublishedDistillation
from bench.stages.case import Case, Machine, Ours, Work, flops
from bench.stages.pair import CLASSES, SIZE, feature_forward, pair
from bench.timing import Call
from engine.config.distill import DistillConfig
from engine.feed.feed import FeedBatch
from engine.models.align import AlignHead
from engine.runtime.torch import FusedClassifier
from engine.stages.distill import Distiller

BATCHES = {"WRN-40-2": 128, "WRN-16-2": 64}
"""Images of a step, by the name of the teacher."""
STORED = DistillConfig(views=4, w_ce=0.0, w_feature=0.0, mixup=0.5, nesterov=True, optimizer="muon")
VISITS = 3
"""Training steps on each stored view, which share the cost of asking the teacher about it once."""


def cases(device: torch.device, batch: int | None = None) -> list[Case]:
    return [case for name, size in BATCHES.items() for case in _cases(device, name, batch or size)]


def _cases(device: torch.device, teacher: str, size: int) -> list[Case]:
    published = {"published, fp32": Work(call=_published(device, teacher, size), amount=1)}
    ours = partial(_ours, teacher, size), partial(_ours_stored, teacher, size)
    return [Case(published=published, open=open_ours, unit="ms") for open_ours in ours]


def _published(device: torch.device, name: str, size: int) -> Call:
    teacher, student = pair(device, name)
    attach(teacher)  # research code leaves its hooks attached while the student trains
    align = AlignHead(64, 128).to(device)
    trained = [*student.train().parameters(), *align.parameters()]
    forwards = feature_forward(teacher), feature_forward(student)
    step = PublishedDistillation(*forwards, align, trained).step
    batch = _batch(device, size)
    return lambda: step(batch.images, batch.labels)


def _ours(teacher: str, size: int, machine: Machine) -> Ours:
    step = opened(machine.accelerator, size, teacher=teacher)
    return _described("distill/step", step, 1, teacher, size, machine)


def _ours_stored(teacher: str, size: int, machine: Machine) -> Ours:
    steps = opened_stored(machine.accelerator, size, teacher=teacher)
    return _described("distill/stored", steps, VISITS, teacher, size, machine)


def _described(case: str, call: Call, amount: int, teacher: str, size: int, machine: Machine) -> Ours:
    return Ours(
        work={case: Work(call=call, amount=amount)},
        flops=flops(call) / amount,
        dtype=machine.accelerator.mixed_precision.replace("no", "fp32"),
        shape=f"{teacher}, batch {size}",
    )


def opened(accelerator: Accelerator, size: int = BATCHES["WRN-40-2"], *, teacher: str = "WRN-40-2") -> Call:
    """Return a call that does a training step, always on the same batch."""
    distiller = _distiller(accelerator, teacher, DistillConfig())
    batch = _batch(accelerator.device, size)
    return lambda: distiller.train_step(batch)


def opened_stored(accelerator: Accelerator, size: int, *, teacher: str) -> Call:
    """Return a call that asks the teacher about a batch and does VISITS training steps on its answer."""
    distiller = _distiller(accelerator, teacher, STORED)
    forward = FusedClassifier(distiller.teacher, [], accelerator)
    batch = _batch(accelerator.device, size)

    def steps() -> None:
        with torch.no_grad(), accelerator.autocast():
            logits = forward(images=batch.images)["logits"].half()
        for _ in range(VISITS):
            distiller.train_step(batch._replace(teacher_logits=logits))

    return steps


def _distiller(accelerator: Accelerator, teacher: str, config: DistillConfig) -> Distiller:
    networks = pair(accelerator.device, teacher)
    distiller = Distiller(*networks, config, 10**6, 0, accelerator, image_size=(SIZE, SIZE))
    distiller.set_training(True)
    return distiller


def _batch(device: torch.device, size: int) -> FeedBatch:
    images = torch.rand(size, 3, SIZE, SIZE, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(size, device=device) % CLASSES
    return FeedBatch(images, labels, torch.ones_like(labels, dtype=torch.bool))
