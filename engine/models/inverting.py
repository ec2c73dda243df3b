"""Check that a teacher can be inverted: that gradients reach the image and BatchNorms can be measured."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from engine.errors import UserError
from engine.models.classifier import Classifier
from engine.models.loading import require_batch_norm
from engine.models.torch_file import first_line
from engine.seeding import generator
from kernels.fuse import coverage, measured

logger = logging.getLogger(__name__)

REMOVE = "remove torch.no_grad(), detach() or reentrant checkpointing from its forward"


def require_invertible(teacher: Classifier, image_size: tuple[int, int], w_bn: float) -> None:
    """Run `teacher`, in eval mode, on two images of noise as synthesis does.

    Logs a warning if layers with running statistics run that the term weighted by `w_bn` leaves out.
    Raises a UserError that says what to change if the teacher or one of its BatchNorms passes no gradient to
    the image, or if no BatchNorm runs although `w_bn` is above 0.
    """
    if w_bn > 0:
        require_batch_norm(teacher, "synthesize.w_bn")
    device = teacher.mean.device
    images = torch.rand(2, 3, *image_size, generator=generator(0, "probe")).to(device)
    images.requires_grad_()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        if w_bn > 0:
            _require_statistics(teacher, images)
        _require_gradient(teacher, images, measured(teacher) if w_bn > 0 else lambda x: (teacher(x), None))


def _require_statistics(teacher: Classifier, images: Tensor) -> None:
    found, missed = coverage(teacher, images)
    if not found:
        raise UserError(
            f"synthesize.w_bn is above 0, but no BatchNorm in eval mode with running statistics runs in the "
            f"teacher {teacher.name}; set synthesize.w_bn to 0 or use a teacher with BatchNorm"
        )
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


def _require_gradient(
    teacher: Classifier, images: Tensor, forward: Callable[[Tensor], tuple[Tensor, Tensor | None]]
) -> None:
    weights = torch.randn(2, teacher.num_classes, generator=generator(0, "probe", 1)).to(images.device)
    try:
        logits, _ = forward(images)
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
