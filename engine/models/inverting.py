"""Check that a teacher can be inverted, and choose the statistics that its images are held to."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.config.synthesize import Statistics, SynthesizeConfig
from engine.errors import UserError
from engine.models.attention import attention_paths
from engine.models.classifier import Classifier
from engine.models.torch_file import first_line
from engine.seeding import generator
from kernels.fuse import coverage, measured, sharing_tensors

logger = logging.getLogger(__name__)

REMOVE = "remove torch.no_grad(), detach() or reentrant checkpointing from its forward"
SUBSTITUTES = {
    "patch_similarity": "the patch similarities of %d attention layers (PSAQ-ViT)",
    "image": "total variation and L2 norm of the image",
}


@dataclass(frozen=True, kw_only=True)
class StatisticsChoice:
    """The statistics of a teacher's images, and the submodules that they are taken from."""

    kind: Statistics
    norms: tuple[str, ...] = ()
    """Paths of the measured BatchNorms and InstanceNorms."""
    attention: tuple[str, ...] = ()
    """Paths of the attention layers."""


def require_invertible(
    teacher: Classifier, image_size: tuple[int, int], config: SynthesizeConfig, *, level: int = logging.INFO
) -> None:
    """Run `teacher`, in eval mode, on two images of noise as synthesis does.

    Logs with `level` what its images are held to if that is not BatchNorm, and a warning if layers with
    running statistics run that are left out. Raises a UserError that says what to change if the teacher or
    one of its BatchNorms passes no gradient to the image, or if it does not have what `config.statistics`
    names, or does not take images of half the size in `coarse_steps`.
    """
    if config.chosen.coarse_steps:
        _require_any_size(teacher, image_size)
    images = _noise(teacher, image_size)
    forward: Callable[[Tensor], Any] = teacher
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        if config.chosen.w_bn > 0:
            choice = choose_statistics(teacher, config.statistics, image_size)
            if choice.kind == "batch_norm":
                _require_statistics(teacher, images)
                forward = measured(teacher)
            else:
                logger.log(level, _substitute(teacher, choice, is_wanted=config.statistics is not None))
        _require_gradient(teacher, images, forward)


def choose_statistics(
    teacher: Classifier, wanted: Statistics | None, image_size: tuple[int, int]
) -> StatisticsChoice:
    """Return `wanted`, or by default the first of batch_norm, patch_similarity and image that is possible.

    Raises a UserError that names synthesize.statistics if the teacher does not have what is wanted.
    """
    images = _noise(teacher, image_size)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        if wanted in (None, "batch_norm"):
            found, missed = coverage(teacher, images)
            if found:
                return StatisticsChoice(kind="batch_norm", norms=tuple(found))
            if wanted is not None:
                raise UserError(_without_norms(teacher, missed))
        if wanted in (None, "patch_similarity"):
            attention = attention_paths(sharing_tensors(teacher), images)
            if attention:
                return StatisticsChoice(kind="patch_similarity", attention=tuple(attention))
            if wanted is not None:
                raise UserError(
                    f"synthesize.statistics is patch_similarity, but no self-attention runs in the teacher "
                    f"{teacher.name}; set it to image, or to null for the default"
                )
    return StatisticsChoice(kind="image")


def _noise(teacher: Classifier, image_size: tuple[int, int]) -> Tensor:
    images = torch.rand(2, 3, *image_size, generator=generator(0, "probe"))
    return images.to(teacher.mean.device).requires_grad_()


def _without_norms(teacher: Classifier, missed: list[str]) -> str:
    others = sorted({type(teacher.get_submodule(path)).__name__ for path in missed})
    has = f"; it has {', '.join(others)}, which is not measured" if others else ""
    return (
        "synthesize.statistics is batch_norm, but no BatchNorm in eval mode with running statistics runs in "
        f"the teacher {teacher.name}{has}; set it to null for a substitute, or use a teacher with BatchNorm"
    )


def _substitute(teacher: Classifier, choice: StatisticsChoice, *, is_wanted: bool) -> str:
    """Describe what is measured instead of BatchNorm statistics, and why."""
    what = SUBSTITUTES[choice.kind]
    what = what % len(choice.attention) if choice.attention else what
    why = "synthesize.statistics says so" if is_wanted else f"{teacher.name} has no BatchNorm statistics"
    return f"synthesize.w_bn weighs {what}, as {why}"


def _require_any_size(teacher: Classifier, image_size: tuple[int, int]) -> None:
    half = image_size[0] // 2, image_size[1] // 2
    try:
        with torch.no_grad():
            teacher(_noise(teacher, half))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"synthesize.coarse_steps shows the teacher images of {half[0]}x{half[1]}, which {teacher.name} "
            f"does not take ({first_line(error)}); set it to 0"
        ) from error


def _require_statistics(teacher: Classifier, images: Tensor) -> None:
    found, missed = coverage(teacher, images)
    without = [path for path, has_gradient in found.items() if not has_gradient]
    if without:
        raise UserError(
            f"teacher.name: {len(without)} of the {len(found)} BatchNorms of {teacher.name} pass no "
            f"gradient to the image (`{without[0]}`); {REMOVE}, or set synthesize.w_bn to 0"
        )
    if missed:
        first = f"`{missed[0]}` ({type(teacher.get_submodule(missed[0])).__name__})"
        more = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
        logger.warning(
            f"teacher: synthesize.w_bn measures {len(found)} of {len(found) + len(missed)} layers with "
            f"running statistics, not {first}{more}"
        )


def _require_gradient(teacher: Classifier, images: Tensor, forward: Callable[[Tensor], Any]) -> None:
    weights = torch.randn(2, teacher.num_classes, generator=generator(0, "probe", 1)).to(images.device)
    try:
        output = forward(images)
        logits: Tensor = output[0] if isinstance(output, tuple) else output
        (gradient,) = torch.autograd.grad((logits.float() * weights).sum(), images)
    except RuntimeError as error:
        raise UserError(
            f"teacher.name: {teacher.name} passes no gradient to its image, but synthesis needs it "
            f"({first_line(error)}); {REMOVE}"
        ) from error
    if not gradient.any():
        raise UserError(
            f"teacher.name: the gradient of {teacher.name} with respect to its image is zero, so synthesis "
            f"cannot use it; {REMOVE}, or use a teacher whose logits depend on the image"
        )
