"""A classifier, the teacher or a student, with the feature maps that distillation taps."""

from collections.abc import Sequence

from torch import nn

from export.networks.axes import BATCHES, batch
from export.spec import Input, NetworkSpec


def classifier_spec(
    name: str,
    classifier: nn.Module,
    *,
    image_size: int,
    features: Sequence[str] = (),
    batches: tuple[int, int, int] = BATCHES,
) -> NetworkSpec:
    """`classifier`: images [B, 3, H, W] in [0, 1] -> (logits [B, C], one map for each name in `features`)."""
    images = Input(name="images", shape=(batch(batches), 3, image_size, image_size), values="uniform")
    return NetworkSpec(name=name, module=classifier, inputs=(images,), outputs=("logits", *features))
