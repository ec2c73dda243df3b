"""Classifiers where no gradient passes through them: in distillation, and as judges of images."""

from collections.abc import Sequence

from torch import Tensor, nn

from engine.models.classifier import Classifier
from engine.models.features import forward_with_features
from engine.models.frozen import Frozen
from engine.runtime.opening import open_runtime
from engine.runtime.place import Place
from export.networks import classifier as networks
from export.spec import NetworkSpec


class _WithFeatures(nn.Module):
    def __init__(self, classifier: Classifier, paths: Sequence[str]) -> None:
        super().__init__()
        self.classifier, self.paths = classifier, tuple(paths)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, features = forward_with_features(self.classifier, images, self.paths)
        return logits, *features


def classifier_spec(
    name: str,
    classifier: Classifier,
    paths: Sequence[str],
    *,
    image_size: int,
    batches: tuple[int, int, int],
) -> NetworkSpec:
    """A teacher or student with the feature maps at `paths`; `batches`: (min, tuned, max) rows."""
    module = _WithFeatures(classifier, paths).eval()
    return networks.classifier_spec(name, module, image_size=image_size, features=paths, batches=batches)


def open_classifier(spec: NetworkSpec, place: Place) -> Frozen:
    """images [B, 3, H, W] in [0, 1] -> (logits, feature maps), float32. Raises as `open_runtime` does."""
    executable = open_runtime(spec, place)

    def ask(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, *features = executable(images=images).values()
        return logits, features

    return ask
