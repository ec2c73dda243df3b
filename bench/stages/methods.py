"""The optimizer steps of an image by each method of synthesis, without warm-up and adversary."""

from functools import partial
from typing import get_args

import torch

from bench.stages.case import Case, Machine, Ours, Work, flops
from bench.stages.pair import SIZE, pair
from bench.stages.synthesize import BATCH, published_step
from engine.config.methods import METHODS, Name
from engine.config.synthesize import SynthesizeConfig
from engine.stages.synthesis.inversion import EAGER_STEPS
from engine.stages.synthesis.synthesizer import Synthesizer


def cases(device: torch.device, batch: int | None = None) -> list[Case]:
    """Return one case per method; the baseline is DDA's published step, times the steps of `dda-paper`."""
    size = batch or BATCH
    images = size / METHODS["dda-paper"].steps
    published = {
        "DDA as published, fp32": Work(call=published_step(device, size, rotation=False), amount=images)
    }
    return [
        Case(published=published, open=partial(_ours, name, size), unit="img/s") for name in get_args(Name)
    ]


def _ours(name: Name, size: int, machine: Machine) -> Ours:
    teacher, _ = pair(machine.accelerator.device)
    teacher = teacher.requires_grad_(False).to(memory_format=torch.channels_last)
    synthesizer = Synthesizer(
        teacher,
        SynthesizeConfig(method=name, batch_size=size),
        image_size=(SIZE, SIZE),
        seed=0,
        accelerator=machine.accelerator,
    )
    inversion = synthesizer.inversion(None)
    draw = torch.Generator().manual_seed(0)
    inversion.begin(torch.randn(inversion.z.shape, generator=draw), torch.arange(size) % 10, draw)
    for _ in range(EAGER_STEPS + 1):
        inversion.step()
    images = size / METHODS[name].steps
    return Ours(
        work={f"synthesize/{name}": Work(call=inversion.step, amount=images)},
        flops=flops(inversion.update) / images,
        dtype=machine.accelerator.mixed_precision.replace("no", "fp32"),
        shape=f"batch {size}, {METHODS[name].steps} steps",
    )
