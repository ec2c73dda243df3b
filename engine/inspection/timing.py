"""Time and memory of one image in a step of synthesis or training, from passes over very few images."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config.recipe import Recipe
from engine.distributed import open_accelerator
from engine.models.classifier import Classifier
from engine.models.inverting import StatisticsChoice
from engine.networks import LoadedPair
from engine.seeding import generator
from engine.stages.synthesis.statistics import measuring

FEW_IMAGES, MANY_IMAGES = 2, 32
"""Images of a pass that is timed: few, and up to many if that is quick."""
QUICK = 0.25
"""Seconds of a pass of many images, at most."""


@dataclass(frozen=True, kw_only=True)
class PerImage:
    """What one image costs, without the generator, the feed and the making of stored views."""

    synthesis: float
    """Seconds of a synthesis step: the teacher, forward and backward."""
    training: float
    """Seconds of a training step: the student forward and backward, and the teacher forward, twice with
    distill.teacher_flip, unless views are stored."""
    kept_bytes: int
    """Memory that the teacher keeps for the backward pass."""


def per_image(pair: LoadedPair, recipe: Recipe, choice: StatisticsChoice) -> PerImage:
    """Return the cost of one image on this machine. The student is left in eval mode, without gradients."""
    kept, synthesis = _synthesis(pair.teacher, recipe, choice)
    return PerImage(synthesis=synthesis, training=_training(pair, recipe), kept_bytes=kept)


def _synthesis(teacher: Classifier, recipe: Recipe, choice: StatisticsChoice) -> tuple[int, float]:
    accelerator = open_accelerator(recipe.compute)
    forward: Callable[[Tensor], tuple[Tensor, Tensor | None]] = lambda x: (teacher(x), None)  # noqa: E731
    if recipe.synthesize.chosen.w_bn > 0:
        forward = measuring(teacher, choice)
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    def step(count: int) -> None:
        nonlocal kept
        kept = 0
        images = _noise(recipe, count, teacher.mean.device).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), accelerator.autocast():
            logits, statistics = forward(images)
        loss = logits.float().logsumexp(1).sum()
        (loss if statistics is None else loss + statistics).backward()
        kept //= count

    passes = recipe.synthesize.chosen.teacher_passes
    seconds = _seconds_per_image(step)
    return kept * passes, seconds * passes


def _training(pair: LoadedPair, recipe: Recipe) -> float:
    accelerator = open_accelerator(recipe.compute)

    def step(count: int) -> None:
        images = _noise(recipe, count, pair.teacher.mean.device)
        with accelerator.autocast():
            if not recipe.distill.views:
                with torch.no_grad():
                    for _ in range(1 + recipe.distill.teacher_flip):
                        pair.teacher(images)
            logits = pair.student(images)
        logits.float().logsumexp(1).sum().backward()

    pair.student.eval()  # its statistics stay those of its random start
    seconds = _seconds_per_image(step)
    pair.student.zero_grad(set_to_none=True)
    return seconds


def _noise(recipe: Recipe, count: int, device: torch.device) -> Tensor:
    draw = generator(0, "probe")
    return torch.rand(count, 3, *recipe.teacher.size, generator=draw).to(device)


def _seconds_per_image(step: Callable[[int], None]) -> float:
    """Return the seconds of a step of some images for each of them, after one that does not count."""
    count = FEW_IMAGES
    step(count)
    spent = _seconds(step, count)
    many = min(MANY_IMAGES, int(count * QUICK / spent))
    if many >= 2 * count:
        count = many
        step(count)
        spent = _seconds(step, count)
    return spent / count


def _seconds(step: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    step(count)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
