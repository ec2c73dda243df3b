"""Distillation: WRN-40-2 -> WRN-16-1 at batch 128, with the alignment head."""

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
from engine.stages.distill import Distiller

BATCH = 128


def cases(device: torch.device, batch: int | None = None) -> list[Case]:
    size = batch or BATCH
    published = Work(call=_published(device, size), amount=1)
    return [Case(published={"published, fp32": published}, open=partial(_ours, size), unit="ms")]


def _published(device: torch.device, size: int) -> Call:
    teacher, student = pair(device)
    attach(teacher)  # research code leaves its hooks attached while the student trains
    align = AlignHead(64, 128).to(device)
    trained = [*student.train().parameters(), *align.parameters()]
    forwards = feature_forward(teacher), feature_forward(student)
    step = PublishedDistillation(*forwards, align, trained).step
    batch = _batch(device, size)
    return lambda: step(batch.images, batch.labels)


def _ours(size: int, machine: Machine) -> Ours:
    step = opened(machine.accelerator, size)
    return Ours(
        work={"distill/step": Work(call=step, amount=1)},
        flops=flops(step),
        dtype=machine.accelerator.mixed_precision.replace("no", "fp32"),
        shape=f"batch {size}",
    )


def opened(accelerator: Accelerator, size: int = BATCH) -> Call:
    """Return a call that does a training step, always on the same batch."""
    teacher, student = pair(accelerator.device)
    distiller = Distiller(teacher, student, DistillConfig(), 10**6, 0, accelerator, image_size=(SIZE, SIZE))
    distiller.set_training(True)
    batch = _batch(accelerator.device, size)
    return lambda: distiller.train_step(batch)


def _batch(device: torch.device, size: int) -> FeedBatch:
    images = torch.rand(size, 3, SIZE, SIZE, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(size, device=device) % CLASSES
    return FeedBatch(images, labels, torch.ones_like(labels, dtype=torch.bool))
