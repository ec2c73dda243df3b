"""Decide whether a classifier can run in channels_last memory, in which most networks are faster."""

from typing import NamedTuple

import torch
from torch import Tensor

from engine.models.classifier import Classifier
from engine.seeding import generator

TOLERANCE = 1e-2
"""Relative to the norm of the logits: far above rounding, far below the error of a misread layout."""


class _Pass(NamedTuple):
    logits: Tensor
    has_backward: bool


def decide_memory_format(classifier: Classifier, image_size: tuple[int, int]) -> None:
    """Set `classifier.memory_format`: contiguous if it fails or returns different logits in channels_last.

    `x.view(len(x), -1)` after a convolution is one such failure. Runs the classifier, which must be in eval
    mode on the CPU, on two images; what it raises on contiguous ones propagates. The weights end up
    contiguous; torch's generator is unchanged.
    """
    contiguous = _run(classifier, image_size, torch.contiguous_format)
    try:
        channels_last = _run(classifier, image_size, torch.channels_last)
    except Exception:  # a foreign forward may do anything with strides
        channels_last = None
    classifier.to(memory_format=torch.contiguous_format)
    if channels_last is None or not _agree(contiguous, channels_last):
        classifier.memory_format = torch.contiguous_format


def _agree(contiguous: _Pass, channels_last: _Pass) -> bool:
    wanted, logits = contiguous.logits, channels_last.logits
    near = not wanted.isfinite().all() or (logits - wanted).norm() <= TOLERANCE * wanted.norm()
    return bool(near) and channels_last.has_backward >= contiguous.has_backward


def _run(classifier: Classifier, image_size: tuple[int, int], memory_format: torch.memory_format) -> _Pass:
    images = torch.rand(2, 3, *image_size, generator=generator(0, "probe"))
    images = images.contiguous(memory_format=memory_format).requires_grad_()
    classifier.to(memory_format=memory_format)
    classifier.memory_format = memory_format
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        logits = classifier(images)
        try:
            torch.autograd.grad(logits.sum(), images)
        except RuntimeError:
            return _Pass(logits.detach(), has_backward=False)
    return _Pass(logits.detach(), has_backward=True)
