"""The frozen teacher: WRN-40-2's logits and the feature map that distillation uses, at batch 128."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.parity import require_alike
from bench.stages.case import Case, Machine, Ours, Work, flops
from bench.stages.pair import FEATURE, SIZE, feature_forward, pair
from engine.models.frozen import Frozen, frozen
from engine.runtime.classifier import classifier_spec, open_classifier
from engine.runtime.place import Place
from engine.runtime.sizes import batches

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
        runtime = machine.place.runtime
        teachers = {
            "teacher/WRN-40-2": (opened(machine.place, batch), runtime),
            "teacher/WRN-40-2, fused copy": (fused(machine), "torch"),
        }
        for name, (teacher, _) in teachers.items():
            require_same(name, teacher, images, eager())
        return Ours(
            work={
                name: Work(call=_without_grad(teacher, images), amount=batch, runtime=by)
                for name, (teacher, by) in teachers.items()
            },
            flops=flops(eager) / batch,
            dtype=machine.place.precision,
            shape=f"batch {batch}, {SIZE}x{SIZE}",
        )

    return Case(published={"eager, fp32": Work(call=eager, amount=batch)}, open=open_ours, unit="img/s")


def fused(machine: Machine) -> Frozen:
    teacher = pair(machine.place.device)[0].to(memory_format=torch.channels_last)
    return frozen(teacher, [FEATURE], machine.accelerator)


def opened(place: Place, batch: int) -> Frozen:
    teacher = pair(place.device)[0].to(memory_format=torch.channels_last)
    sizes = batches(place.runtime, batch)
    spec = classifier_spec("teacher", teacher, [FEATURE], image_size=SIZE, batches=sizes)
    return open_classifier(spec, place)


def require_same(
    name: str,
    teacher: Callable[[Tensor], tuple[Tensor, list[Tensor]]],
    images: Tensor,
    theirs: tuple[Tensor, Tensor],
) -> None:
    """Raise DifferentWorkError if the logits or the feature map differ from the baseline's."""
    with torch.no_grad():
        logits, (feature,) = teacher(images)
    require_alike(f"{name}, logits", logits, theirs[0])
    require_alike(f"{name}, feature map", feature, theirs[1])


def _without_grad(teacher: Frozen, images: Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def call() -> object:
        return teacher(images)

    return call
