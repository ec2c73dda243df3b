"""Steps of the loop's stages beside the same steps as published."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, product

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.machine import describe, gemm_ceiling
from bench.published.hooks import attach
from bench.published.steps import PublishedDistillation, PublishedSynthesis
from bench.rows import Row, commit
from bench.timing import Call, milliseconds
from engine.bank import Sample
from engine.compute import ComputeConfig, open_accelerator, resolved
from engine.models.align import AlignHead
from engine.models.classifier import Classifier
from engine.models.features import forward_with_features
from engine.models.generator import Generator
from engine.models.networks import wrn_16_1, wrn_40_2
from engine.stages.distill import Distiller
from engine.stages.distill_config import DistillConfig
from engine.stages.inversion import EAGER_STEPS
from engine.stages.rotation import RotationAdversary, RotationHead
from engine.stages.synthesize import Synthesizer
from engine.stages.synthesize_config import SynthesizeConfig

CLASSES, SIZE = 10, 32
SYNTHESIS_BATCH, DISTILLATION_BATCH = 100, 128
BATCH_STEPS = 10  # the default recipe's
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def rows(names: Sequence[str]) -> Iterator[Row]:
    """Rows of the named stages: each published step in turns with ours.

    On a CPU the published steps are also measured before, as their users run them: later the process keeps
    its freed memory, as `engine` does.
    """
    compute = resolved(ComputeConfig())
    device = torch.device(compute.device)
    published = {name: STAGES[name][0](device) for name in names}
    fresh: dict[str, float] = {}
    if device.type == "cpu":
        fresh = {
            name: milliseconds({name: step}, device, seconds=5)[name] for name, step in published.items()
        }
    accelerator = open_accelerator(compute)
    for name in names:
        ours = STAGES[name][1](accelerator)
        flops = _flops(ours.counted)
        ceiling = gemm_ceiling(device, DTYPES[compute.precision])
        calls = {"step": ours.step, "published": published[name], "gemm": ceiling.call}
        if ours.batch is not None:
            calls["batch"] = ours.batch
        ms = milliseconds(calls, device, seconds=5)
        baselines = {"published, fp32": ms["published"]}
        if name in fresh:
            baselines = {"published, fp32": fresh[name], "published, fp32, memory kept": ms["published"]}
        per_step = {"step": ms["step"]}
        if ours.batch is not None:
            per_step["batch"] = ms["batch"] / BATCH_STEPS
        for (case, value), (baseline, theirs) in product(per_step.items(), baselines.items()):
            yield Row(
                case=f"{name}/{case}",
                baseline=baseline,
                ours=value,
                theirs=theirs,
                unit="ms",
                ratio=theirs / value,
                floor=ceiling.ms(flops, ms["gemm"]),
                device=describe(device),
                dtype=compute.precision,
                shape=ours.shape,
                commit=commit(),
            )


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Our step; `counted` is the same step for counting its operations, never replayed from a graph.

    `batch`: BATCH_STEPS of it with all that a batch has around them.
    """

    step: Call
    counted: Call
    shape: str
    batch: Call | None = None


def published_synthesis(device: torch.device) -> Call:
    teacher, student = _pair(device)
    labels, z = _labels_and_z(device)
    head, generator = RotationHead(64, CLASSES).to(device), Generator(size=SIZE).to(device)
    student_map = _second(_tap(student))
    return PublishedSynthesis(teacher, attach(teacher), student_map, head, generator, z, labels).step


def our_synthesis(accelerator: Accelerator) -> Ours:
    """WRN-40-2 at batch 100, with the rotation term on WRN-16-1."""
    teacher, student = (network.requires_grad_(False) for network in _pair(accelerator.device))
    labels, z = _labels_and_z(accelerator.device)
    config = SynthesizeConfig(batch_size=SYNTHESIS_BATCH, steps=BATCH_STEPS)
    synthesizer = Synthesizer(teacher, config, image_size=SIZE, seed=0, accelerator=accelerator)
    rotation = RotationAdversary(student, SIZE, 0, accelerator)
    rotation.head.requires_grad_(False)
    challenge = rotation.challenger()

    def adversary(images: Tensor, labels: Tensor, _: Tensor) -> Tensor:
        return challenge(images, labels)

    inversion = synthesizer.inversion(adversary)
    inversion.begin(z, labels, torch.Generator().manual_seed(0))
    for _ in range(EAGER_STEPS + 1):
        inversion.step()
    index = count()
    return Ours(
        step=inversion.step,
        counted=inversion.update,
        batch=lambda: synthesizer.batch(next(index), key_stride=1, adversary=adversary),
        shape=f"batch {SYNTHESIS_BATCH}",
    )


def published_distillation(device: torch.device) -> Call:
    teacher, student = _pair(device)
    attach(teacher)  # the research codes' hooks stay on while the student trains
    align = AlignHead(64, 128).to(device)
    trained = [*student.train().parameters(), *align.parameters()]
    step = PublishedDistillation(_tap(teacher), _tap(student), align, trained).step
    sample = _sample()
    images, labels = sample.images.to(device).float() / 255, sample.labels.to(device)
    return lambda: step(images, labels)


def our_distillation(accelerator: Accelerator) -> Ours:
    """WRN-40-2 -> WRN-16-1 at batch 128, with the alignment head."""
    teacher, student = _pair(accelerator.device)
    distiller = Distiller(teacher, student, DistillConfig(), 10**6, 0, accelerator, image_size=SIZE)
    distiller.set_training(True)
    sample = _sample()

    def step() -> object:
        return distiller.train_step(sample)

    return Ours(step=step, counted=step, shape=f"batch {DISTILLATION_BATCH}")


STAGES = {
    "synthesize": (published_synthesis, our_synthesis),
    "distill": (published_distillation, our_distillation),
}


def _labels_and_z(device: torch.device) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.arange(SYNTHESIS_BATCH, device=device) % CLASSES, torch.randn(SYNTHESIS_BATCH, 256).to(
        device
    )


def _sample() -> Sample:
    pixels = torch.randint(256, (DISTILLATION_BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.arange(DISTILLATION_BATCH) % CLASSES
    return Sample(pixels, labels, torch.ones(DISTILLATION_BATCH, dtype=torch.bool))


def _pair(device: torch.device) -> tuple[Classifier, Classifier]:
    """WRN-40-2 and WRN-16-1 in eval mode with random weights, contiguous."""
    torch.manual_seed(0)
    networks = wrn_40_2(CLASSES), wrn_16_1(CLASSES)
    teacher, student = (
        Classifier(
            network, num_classes=CLASSES, in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, feature_path="relu"
        )
        for network in networks
    )
    return teacher.to(device).eval(), student.to(device).eval()


def _tap(classifier: Classifier) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, (feature,) = forward_with_features(classifier, images, ["network.relu"])
        return logits, feature

    return forward


def _second(taps: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
    return lambda images: taps(images)[1]


def _flops(step: Call) -> float:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()
