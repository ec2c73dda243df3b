"""The frozen teacher: WRN-40-2's logits and the feature map that distillation taps, at batch 128."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.parity import require_alike
from bench.stages.case import Case, Machine, Ours, Work, flops
from bench.stages.pair import FEATURE, SIZE, pair, tap
from engine.models.frozen import Frozen, frozen
from engine.runtime.classifier import classifier_spec, open_classifier
from engine.runtime.place import Place
from engine.runtime.sizes import batches

BATCH = 128


def cases(device: torch.device, batch: int | None = None) -> list[Case]:
    return [case(device, batch or BATCH)]


def case(device: torch.device, batch: int) -> Case:
    published = tap(pair(device)[0])
    images = torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)

    @torch.no_grad()
    def eager() -> tuple[Tensor, Tensor]:
        return published(images)

    def open_ours(machine: Machine) -> Ours:
        """In the default runtime, and in runtime torch, whose teacher is the engine's fused copy."""
        runtime = machine.place.runtime
        asked = {
            "teacher/WRN-40-2": (opened(machine.place, batch), runtime),
            "teacher/WRN-40-2, fused copy": (fused(machine), "torch"),
        }
        for name, (ask, _) in asked.items():
            require_same(name, ask, images, eager())
        return Ours(
            work={
                name: Work(call=_asking(ask, images), amount=batch, runtime=by)
                for name, (ask, by) in asked.items()
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
    ask: Callable[[Tensor], tuple[Tensor, list[Tensor]]],
    images: Tensor,
    theirs: tuple[Tensor, Tensor],
) -> None:
    """Raises DifferentWorkError where logits or feature map are not those of the baseline."""
    with torch.no_grad():
        logits, (feature,) = ask(images)
    require_alike(f"{name}, logits", logits, theirs[0])
    require_alike(f"{name}, feature map", feature, theirs[1])


def _asking(ask: Frozen, images: Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def call() -> object:
        return ask(images)

    return call
