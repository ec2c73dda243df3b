"""A classifier that is only asked, never trained: its fused copy."""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from engine.models.classifier import Classifier
from engine.models.features import forward_with_features, submodule
from kernels.fuse import fuse_frozen, sharing_tensors

Frozen = Callable[[Tensor], tuple[Tensor, list[Tensor]]]
"""images [B, 3, H, W] in [0, 1] -> (logits, [outputs of the submodules asked for])."""

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}


def frozen(
    classifier: Classifier,
    paths: Sequence[str],
    accelerator: Accelerator,
    *,
    dtype: torch.dtype | None = None,
) -> Frozen:
    """`classifier`, which is in eval mode, as it is now; the submodules at `paths` give the features.

    `dtype`: type of the matrix products, by default that of training.

    A fused copy (`kernels.fuse`) where its forward can be traced; else a copy of its modules around its own
    weights, which must then stay as they are. Either may run while another thread runs the classifier. Raises
    UserError for a path that does not exist.
    """
    assert not classifier.training
    for path in paths:
        submodule(classifier, path)
    used = dtype or DTYPES[accelerator.mixed_precision]
    fused = fuse_frozen(classifier, paths, used, classifier.memory_format)
    unfused = sharing_tensors(classifier) if fused is None else None

    def forward(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(accelerator.device.type, used, enabled=used != torch.float32):
            if unfused is not None:
                return forward_with_features(unfused, images, paths)
            assert fused is not None
            return fused(images)

    return forward
