"""Synthesis: WRN-40-2 at batch 100, with the rotation term on WRN-16-1."""

from collections.abc import Callable
from functools import partial
from itertools import count

import torch
from accelerate import Accelerator
from torch import Tensor

from bench.published.hooks import attach
from bench.published.steps import PublishedSynthesis
from bench.stages.case import Case, Machine, Ours, Work, flops
from bench.stages.pair import CLASSES, SIZE, feature_forward, pair
from bench.timing import Call
from engine.config.synthesize import SynthesizeConfig
from engine.models.generator import Generator
from engine.stages.synthesis.adversary import RotationAdversary, RotationHead
from engine.stages.synthesis.inversion import EAGER_STEPS, Inversion
from engine.stages.synthesis.synthesizer import Synthesizer

BATCH = 100
BATCH_STEPS = 10


def cases(device: torch.device, batch: int | None = None) -> list[Case]:
    size = batch or BATCH
    published = Work(call=published_step(device, size), amount=1)
    return [Case(published={"published, fp32": published}, open=partial(_ours, size), unit="ms")]


def published_step(device: torch.device, size: int, *, rotation: bool = True) -> Call:
    """Return the published step on `size` images."""
    teacher, student = pair(device)
    labels, z = _labels_and_z(device, size)
    head, generator = RotationHead(64, CLASSES).to(device), Generator(size=(SIZE, SIZE)).to(device)
    return PublishedSynthesis(
        teacher,
        attach(teacher),
        generator,
        z,
        labels,
        student_map=_second(feature_forward(student)) if rotation else None,
        head=head if rotation else None,
    ).step


def _ours(size: int, machine: Machine) -> Ours:
    """Return a single step, and a whole batch of BATCH_STEPS steps with its set-up and results."""
    inversion, batch = opened(machine.accelerator, size)
    return Ours(
        work={
            "synthesize/step": Work(call=inversion.step, amount=1),
            "synthesize/batch": Work(call=batch, amount=BATCH_STEPS),
        },
        flops=flops(inversion.update),  # never replayed from a CUDA graph
        dtype=machine.accelerator.mixed_precision.replace("no", "fp32"),
        shape=f"batch {size}",
    )


def opened(accelerator: Accelerator, size: int = BATCH) -> tuple[Inversion, Call]:
    """Return an inversion of `size` images, captured on a GPU, and a call that makes a whole batch."""
    teacher, student = (
        network.requires_grad_(False).to(memory_format=torch.channels_last)  # like a run does
        for network in pair(accelerator.device)
    )
    labels, z = _labels_and_z(accelerator.device, size)
    config = SynthesizeConfig(method="dda-paper", batch_size=size, steps=BATCH_STEPS)
    synthesizer = Synthesizer(teacher, config, image_size=(SIZE, SIZE), seed=0, accelerator=accelerator)
    rotation = RotationAdversary(student, (SIZE, SIZE), 0, accelerator)
    rotation.head.requires_grad_(False)
    term = rotation.adversarial_term()

    def adversary(images: Tensor, labels: Tensor, _: Tensor) -> Tensor:
        return term(images, labels)

    inversion = synthesizer.inversion(adversary)
    inversion.begin(z, labels, torch.Generator().manual_seed(0))
    for _ in range(EAGER_STEPS + 1):
        inversion.step()
    index = count()

    def batch() -> object:
        return synthesizer.batch(next(index), key_stride=1, adversary=adversary)

    return inversion, batch


def _labels_and_z(device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.arange(size, device=device) % CLASSES, torch.randn(size, 256).to(device)


def _second(forward: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
    return lambda images: forward(images)[1]
