"""What distillation trains, as one module."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.models.align import AlignHead
from engine.models.classifier import Classifier
from engine.models.features import forward_with_features


class Trained(nn.Module):
    """The student, and the alignment head behind the feature map at `feature_paths`, if it has a path."""

    def __init__(self, student: Classifier, align: AlignHead | None, feature_paths: Sequence[str]) -> None:
        super().__init__()
        self.student, self.align, self.feature_paths = student, align, feature_paths

    def forward(self, images: Tensor, size: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
        """images [B, 3, H, W] in [0, 1] -> logits [B, C], aligned feature map [B, C_t, *size] or None."""
        logits, features = forward_with_features(self.student, images, self.feature_paths)
        return logits, None if self.align is None or size is None else self.align(features[0], size)


def averaged(trained: Trained) -> DistributedDataParallel:
    """`trained`, whose gradients are, after each backward pass, their means over the ranks.

    Its buffers are left alone: BatchNorm's come out alike on all ranks.
    """
    device = next(trained.parameters()).device
    return DistributedDataParallel(
        trained,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        static_graph=True,  # a student may have parameters that it does not use
    )
