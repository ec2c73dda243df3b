"""A classifier (the teacher or a student) with the feature maps that distillation uses."""

from collections.abc import Sequence

from torch import nn

from export.spec import BATCHES, Input, NetworkSpec, batch


def classifier_spec(
    name: str,
    classifier: nn.Module,
    *,
    image_size: tuple[int, int],
    features: Sequence[str] = (),
    batches: tuple[int, int, int] = BATCHES,
) -> NetworkSpec:
    """Return the spec of images [B, 3, H, W] in [0, 1] -> logits [B, C] and a map per name in `features`."""
    images = Input(name="images", shape=(batch(batches), 3, *image_size), values="uniform")
    return NetworkSpec(name=name, module=classifier, inputs=(images,), outputs=("logits", *features))
