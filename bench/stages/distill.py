"""Distillation: WRN-40-2 -> WRN-16-1 at batch 128, with the alignment head."""

import torch

from bench.published.hooks import attach
from bench.published.steps import PublishedDistillation
from bench.stages.case import Case, Machine, Ours, Work, flops
from bench.stages.pair import CLASSES, SIZE, pair, tap
from bench.timing import Call
from engine.memory_bank import Sample
from engine.models.align import AlignHead
from engine.stages.distill import Distiller
from engine.stages.distill_config import DistillConfig

BATCH = 128


def cases(device: torch.device) -> list[Case]:
    published = Work(call=_published(device), amount=1)
    return [Case(published={"published, fp32": published}, open=_ours, unit="ms")]


def _published(device: torch.device) -> Call:
    teacher, student = pair(device)
    attach(teacher)  # the research codes' hooks stay on while the student trains
    align = AlignHead(64, 128).to(device)
    trained = [*student.train().parameters(), *align.parameters()]
    step = PublishedDistillation(tap(teacher), tap(student), align, trained).step
    sample = _sample()
    images, labels = sample.images.to(device).float() / 255, sample.labels.to(device)
    return lambda: step(images, labels)


def _ours(machine: Machine) -> Ours:
    teacher, student = pair(machine.accelerator.device)
    distiller = Distiller(teacher, student, DistillConfig(), 10**6, 0, machine.accelerator, image_size=SIZE)
    distiller.set_training(True)
    sample = _sample()

    def step() -> object:
        return distiller.train_step(sample)

    return Ours(
        work={"distill/step": Work(call=step, amount=1)},
        flops=flops(step),
        dtype=machine.accelerator.mixed_precision.replace("no", "fp32"),
        shape=f"batch {BATCH}",
    )


def _sample() -> Sample:
    pixels = torch.randint(256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    return Sample(pixels, torch.arange(BATCH) % CLASSES, torch.ones(BATCH, dtype=torch.bool))
