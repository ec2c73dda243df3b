"""The frozen teacher: WRN-40-2's logits and the feature map that distillation uses, at batch 128."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.parity import require_alike
from bench.stages.case import Case, Machine, Ours, Work, flops
from bench.stages.pair import FEATURE, SIZE, feature_forward, pair
from engine.runtime.base import Executable, RuntimeOptions
from engine.runtime.batching import batch_sizes
from engine.runtime.networks import classifier_spec
from engine.runtime.open import open_runtime
from engine.runtime.torch import FusedClassifier

BATCH = 128


def cases(device: torch.device, batch: int | None = None) -> list[Case]:
    return [case(device, batch or BATCH)]


def case(device: torch.device, batch: int) -> Case:
    published = feature_forward(pair(device)[0])
    images = torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)

    @torch.no_grad()
    def eager() -> tuple[Tensor, Tensor]:
        return published(images)

    def open_ours(machine: Machine) -> Ours:
        """Open the teacher in the default runtime, and in runtime torch as the engine's fused copy."""
        runtime = machine.options.runtime
        opened_by = {
            "teacher/WRN-40-2": (opened(machine.options, batch), runtime),
            "teacher/WRN-40-2, fused copy": (fused(machine), "torch"),
        }
        for name, (forward, _) in opened_by.items():
            require_same(name, forward, images, eager())
        return Ours(
            work={
                name: Work(call=_without_grad(forward, images), amount=batch, runtime=by)
                for name, (forward, by) in opened_by.items()
            },
            flops=flops(eager) / batch,
            dtype=machine.options.precision,
            shape=f"batch {batch}, {SIZE}x{SIZE}",
        )

    return Case(published={"eager, fp32": Work(call=eager, amount=batch)}, open=open_ours, unit="img/s")


def fused(machine: Machine) -> Executable:
    teacher = pair(machine.options.device)[0].to(memory_format=torch.channels_last)
    return FusedClassifier(teacher, [FEATURE], machine.accelerator)


def opened(options: RuntimeOptions, batch: int) -> Executable:
    teacher = pair(options.device)[0].to(memory_format=torch.channels_last)
    sizes = batch_sizes(options.runtime, batch)
    spec = classifier_spec("teacher", teacher, [FEATURE], image_size=(SIZE, SIZE), batches=sizes)
    return open_runtime(spec, options)


def require_same(
    name: str,
    forward: Executable,
    images: Tensor,
    theirs: tuple[Tensor, Tensor],
) -> None:
    """Raise DifferentWorkError if the logits or the feature map differ from the baseline's."""
    with torch.no_grad():
        outputs = forward(images=images)
    require_alike(f"{name}, logits", outputs["logits"], theirs[0])
    require_alike(f"{name}, feature map", outputs[FEATURE], theirs[1])


def _without_grad(forward: Executable, images: Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def call() -> object:
        return forward(images=images)

    return call
