"""`python -m tests.engine.stages.over_ranks DIR`: run BatchNorm and distillation, and save DIR/RANK.pt.

The tests call the same functions in one process and compare.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import barrier, get_rank, get_world_size

from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.config.distill import DistillConfig
from engine.distributed import leave, open_accelerator
from engine.errors import NonFiniteError
from engine.feed.feed import FeedBatch
from engine.models.classifier import Classifier
from engine.models.features import forward_with_features
from engine.models.wide_resnet import WideResNet
from engine.seeding import generator
from engine.stages.distill import Distiller
from engine.stages.sync_batch_norm import BatchNormOverRanks

BATCH, SIZE, CLASSES, STEPS = 8, 8, 4, 30

LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "maps": (lambda: nn.BatchNorm2d(6), (BATCH, 6, 5, 3)),
    "vectors": (lambda: nn.BatchNorm1d(6), (BATCH, 6)),
    "sequences": (lambda: nn.BatchNorm1d(6, momentum=0.7, eps=0.1), (BATCH, 6, 7)),
    "no weights": (lambda: nn.BatchNorm2d(6, affine=False), (BATCH, 6, 5, 3)),
    "cumulative": (lambda: nn.BatchNorm2d(6, momentum=None), (BATCH, 6, 5, 3)),
    "no statistics": (lambda: nn.BatchNorm2d(6, track_running_stats=False), (BATCH, 6, 5, 3)),
}


class _Forward:
    """A forward pass of the teacher itself, in the test's float64."""

    description = "torch"

    def __init__(self, teacher: Classifier) -> None:
        self._teacher = teacher

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        paths = ["network.relu", "network.stages.1"]
        logits, features = forward_with_features(self._teacher, inputs["images"], paths)
        return {"logits": logits, **dict(zip(paths, features, strict=True))}


def normalized(name: str, mine: slice) -> dict[str, Tensor]:
    """Return outputs, gradients and running statistics for the rows `mine`.

    There are two float64 batches in train mode and one in eval mode.
    """
    make, shape = LAYERS[name]
    draw, layer = generator(0, name), make().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=draw)
    found: dict[str, Tensor] = {}
    for step in range(3):
        layer.train(step < 2)
        x, grad = (torch.randn(shape, dtype=torch.float64, generator=draw) for _ in range(2))
        part = (2 + 3 * x.abs().cumsum(0))[mine].requires_grad_()  # the rows' means are far apart
        y = layer(part)
        y.backward(grad[mine])
        assert part.grad is not None
        found |= {f"y {step}": y.detach(), f"grad {step}": part.grad}
        found |= {f"{key} {step}": value.clone() for key, value in layer.state_dict().items()}
    return found | {f"grad of {key}": value.grad for key, value in layer.named_parameters()}


def network(widen: int, seed: int) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = WideResNet(10, widen, CLASSES, in_channels=1)
    nn.init.normal_(net.fc.weight, std=0.1, generator=generator(seed, "fc"))
    shape = {"num_classes": CLASSES, "in_channels": 1}
    return Classifier(net, **shape, mean=(0.5,), std=(0.5,), feature_path="relu", taps=["stages.1"])


def batches(mine: slice) -> list[FeedBatch]:
    """Return the rows `mine` of each batch; the teacher agrees with 0 to 75 % of the labels of a batch."""
    draw, parts = generator(0, "batches"), []
    for step in range(STEPS):
        images = torch.rand(BATCH, 3, SIZE, SIZE, generator=draw)
        labels = torch.randint(0, CLASSES, (BATCH,), generator=draw)
        agrees = torch.rand(BATCH, generator=draw) < (step % 4) / 4
        share = agrees[mine].double().mean() / agrees.double().mean() if agrees.any() else 1.0
        parts.append(FeedBatch(images[mine], labels[mine], agrees[mine], float(share)))
    return parts


def distilled(mine: slice) -> dict[str, Any]:
    """Return the state and the logged means of a training in float64; the student has an unused parameter."""
    torch.set_default_dtype(torch.float64)
    try:
        teacher, student = network(2, seed=1).eval().requires_grad_(False), network(1, seed=2)
        student.network.unused = nn.Parameter(torch.ones(2))
        ours = Distiller(
            teacher,
            student,
            DistillConfig(batch_size=BATCH, temperature=4, w_feature=5, weight_decay=0.01),
            STEPS + 1,
            3,
            open_accelerator(resolve_compute(ComputeConfig(device="cpu", precision="fp32", threads=1))),
            image_size=(SIZE, SIZE),
            teacher_forward=_Forward(teacher),
        )
        logs: list[dict[str, float]] = []
        ours.train(batches(mine), STEPS, on_log=lambda _, means: logs.append(means), log_every=1)
        return {"state": copy.deepcopy(ours.state_dict()), "logs": logs, "error": _error_of_nan(ours, mine)}
    finally:
        torch.set_default_dtype(torch.float32)


def _error_of_nan(distiller: Distiller, mine: slice) -> str:
    """Return the error of a batch whose last image, on the last rank, is NaN."""
    batch = batches(mine)[0]
    if mine.stop == BATCH:
        batch.images[-1] = torch.nan
    try:
        distiller.train([batch], 1)
    except NonFiniteError as error:
        return str(error)
    return "none"


def main(folder: Path) -> None:
    open_accelerator(resolve_compute(ComputeConfig(device="cpu", precision="fp32", threads=1)))
    part = BATCH // get_world_size()
    mine = slice(get_rank() * part, (get_rank() + 1) * part)
    with BatchNormOverRanks():
        layers = {name: normalized(name, mine) for name in LAYERS}
    torch.save({"layers": layers, "distilled": distilled(mine)}, folder / f"{get_rank()}.pt")
    barrier()
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
