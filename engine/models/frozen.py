"""A classifier that is only asked, never trained: its fused copy."""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from engine.models.classifier import Classifier
from engine.models.features import forward_with_features, submodule
from kernels.fuse import fuse_frozen

Frozen = Callable[[Tensor], tuple[Tensor, list[Tensor]]]
"""images [B, 3, H, W] in [0, 1] -> (logits, [outputs of the submodules asked for])."""

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}


def frozen(classifier: Classifier, paths: Sequence[str], accelerator: Accelerator) -> Frozen:
    """`classifier`, which is in eval mode, as it is now; the submodules at `paths` give the features.

    A fused copy (`kernels.fuse`) where its forward can be traced; else the classifier itself, which must then
    stay as it is. Raises UserError for a path that does not exist.
    """
    assert not classifier.training
    for path in paths:
        submodule(classifier, path)
    fused = fuse_frozen(classifier, paths, DTYPES[accelerator.mixed_precision])

    def forward(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        with accelerator.autocast():
            if fused is None:
                return forward_with_features(classifier, images, paths)
            return fused(images)

    return forward
