"""Build and load classifiers, and check on a few images that they are usable."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from engine.config.classifier import ClassifierConfig
from engine.errors import UserError
from engine.models.classifier import Classifier
from engine.models.feature_map import find_feature_map, layout_of
from engine.models.features import FeatureLayout, forward_with_features, submodule
from engine.models.fitting import fit
from engine.models.memory_format import decide_memory_format
from engine.models.outputs import entry, is_constant, logits_path, require_logits
from engine.models.sources import build
from engine.models.torch_file import first_line
from engine.models.trainable import buffers_restored, require_trainable
from engine.models.unwrapping import unwrapped, without_wrapper_parts
from engine.models.weights import read_weights
from engine.paths import resolve
from engine.seeding import generator


def build_classifier(
    config: ClassifierConfig, section: str = "teacher", *, taps: Collection[str] = ()
) -> Classifier:
    """Build a classifier with random weights from torch's global generator; `config.weights` is ignored.

    `taps` are submodules whose maps distillation aligns, in addition to the feature map.

    Raises a UserError that names the field of `section` for a bad value, an unknown name, a factory that
    fails, or a network that does not return [B, num_classes] logits or cannot be trained, and one that names
    distill.taps for a submodule that returns no map.
    """
    classifier = _build(config, section, taps)
    _probe(classifier, config, section)
    require_trainable(classifier, section, config.size)
    return classifier


def load_classifier(
    config: ClassifierConfig, section: str = "teacher", *, taps: Collection[str] = ()
) -> Classifier:
    """Load a trained classifier in eval mode, without gradients; torch's global generator is unchanged.

    Raises UserError as `build_classifier` does, and one that names `section`.weights and the file if the
    weights are missing, unreadable or do not fit, or if the logits are not finite or equal for all images.
    """
    if config.weights is None:
        raise UserError(
            f"{section}.weights is not set; give the .safetensors or .pth file of the trained network"
        )
    with torch.random.fork_rng(devices=[]):
        classifier = _build(config, section, taps)
        path = resolve(config.weights, f"{section}.weights")
        content = read_weights(path, f"{section}.weights")
        classifier = _with_weights(classifier, content, config, section, path)
    classifier.eval().requires_grad_(False)
    logits = _probe(classifier, config, section)
    if not logits.isfinite().all():
        raise UserError(
            f"{section}.weights: '{path}' produces logits that are not finite; "
            "use the weights of a training run that converged"
        )
    if is_constant(logits):
        raise UserError(
            f"{section}.weights: '{path}' produces the same logits for every image; use the weights of a "
            f"training run that converged, and check {section}.mean and {section}.std"
        )
    return classifier


def require_feature(classifier: Classifier, section: str) -> str:
    """Return the path of the feature map inside `classifier`.

    Raises a UserError that names `section`.feature if it is unknown.
    """
    if classifier.feature_path is None:
        raise UserError(
            f"{section}.feature is not set, and {classifier.name} has no feature map before a pooling; set "
            f"{section}.feature to a submodule that returns one, or distill.w_feature to 0"
        )
    return classifier.feature_path


def aligned_paths(classifier: Classifier, section: str) -> list[str]:
    """Return the paths of the maps that distillation aligns, the feature map first; one may occur twice.

    Raises UserError as `require_feature` does.
    """
    return [require_feature(classifier, section), *classifier.taps]


def _build(config: ClassifierConfig, section: str, taps: Collection[str]) -> Classifier:
    config.check(section)
    network = unwrapped(build(config, section))
    own_feature = getattr(network, "feature_path", None)
    mean, std = config.normalization
    feature = config.feature or (own_feature if isinstance(own_feature, str) else None)
    return Classifier(
        network,
        num_classes=config.classes,
        in_channels=config.channels,
        mean=mean,
        std=std,
        feature_path=None if feature is None else without_wrapper_parts(feature, network),
        taps=[without_wrapper_parts(path, network) for path in taps],
        name=config.name,
    )


def _with_weights(
    classifier: Classifier, content: object, config: ClassifierConfig, section: str, file: Path
) -> Classifier:
    """Load the weights in `content` into the classifier and return it.

    If they do not fit a network of Hugging Face's that is built for the images' size, return one of the size
    that its folder says: some networks resize their position embeddings to the image as they run.
    """
    try:
        _fit(classifier, content, config, section, file)
    except UserError:
        if not config.name.startswith("hf:"):
            raise
        with suppress(UserError):
            taps = [path.removeprefix("network.") for path in classifier.taps]
            published = _build(replace(config, image_size=None), section, taps)
            _fit(published, content, config, section, file)
            return published
        raise
    return classifier


def _fit(classifier: Classifier, content: object, config: ClassifierConfig, section: str, file: Path) -> None:
    fit(
        classifier.network,
        content,
        key=config.weights_key,
        num_classes=config.classes,
        section=section,
        file=file,
    )


def _probe(classifier: Classifier, config: ClassifierConfig, section: str) -> Tensor:
    """Return the logits of four noise images in eval mode; set the classifier's output and maps.

    The mode is restored. Raises a UserError that names the field of `section` if the network cannot run, does
    not return logits, or returns no tensor at the feature's path, and one that names distill.taps if it
    returns no map at one of those.
    """
    size = config.size
    images = _probe_images(size)
    paths = [] if classifier.feature_path is None else [classifier.feature_path]
    with _evaluating(classifier), buffers_restored(classifier), torch.no_grad():
        try:
            output, _ = forward_with_features(classifier, images, paths)
        except UserError as error:
            raise UserError(f"{section}.feature: {error}") from error
        except Exception as error:  # the network may be anyone's
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(_not_run(classifier, images, config, section, reason)) from error
        if isinstance(output, Tensor) and output.shape == (1, config.num_classes):
            raise UserError(
                f"{section}.name: {config.name} returns {list(output.shape)} for four images, not "
                f"[4, {config.num_classes}]; its forward must accept any batch size"
            )
        classifier.output = logits_path(output, config, section, len(images))
        logits: Tensor = entry(output, classifier.output)
        require_logits(logits, lambda: classifier(images), config, section)
        _require_independent(logits, classifier(images[:1]), config, section)
        decide_memory_format(classifier, size)
        _find_maps(classifier, size, section)
    return logits


def _find_maps(classifier: Classifier, size: tuple[int, int], section: str) -> None:
    """Set the classifier's `feature_path`, if nothing names it, and its `layouts`."""
    if classifier.feature_path is not None:
        layout = layout_of(classifier, classifier.feature_path, size)
        if layout is not None:
            classifier.layouts[classifier.feature_path] = layout
    elif (found := find_feature_map(classifier, size)) is not None:
        classifier.feature_path, classifier.feature_is_found = found.path, True
        classifier.layouts[found.path] = found.layout
    for path in classifier.taps:
        classifier.layouts[path] = _tapped_layout(classifier, path, size, section)


def _tapped_layout(classifier: Classifier, path: str, size: tuple[int, int], section: str) -> FeatureLayout:
    name = path.removeprefix("network.")
    try:
        submodule(classifier.network, name)
    except UserError as error:
        raise UserError(f"distill.taps: the {section} has {error}") from error
    layout = layout_of(classifier, path, size)
    if layout is None:
        raise UserError(
            f"distill.taps: '{name}' of the {section} returns no feature map when the network runs; name a "
            "submodule that returns [B, C, H, W], [B, H, W, C] or one token per position"
        )
    return layout


def _require_independent(logits: Tensor, alone: Tensor, config: ClassifierConfig, section: str) -> None:
    """Refuse a network whose logits for an image, [1, C], depend on the rest of the batch."""
    if alone.isfinite().all() and (alone - logits[:1]).norm() > 1e-2 * logits[:1].norm() + 1e-6:
        raise UserError(
            f"{section}.name: in eval mode, the logits of {config.name} for an image depend on the other "
            "images in the batch, or on chance; remove the cause from its forward"
        )


def _probe_images(size: tuple[int, int]) -> Tensor:
    """Return [4, 3, *size]: noise in four ranges, never flat, as some networks divide by the spread."""
    noise = torch.rand(4, 3, *size, generator=generator(0, "probe"))
    scale, offset = torch.tensor([1, 0.1, 0.2, 0.2]), torch.tensor([0, 0.45, 0, 0.8])
    return noise * scale.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1)


@contextmanager
def _evaluating(classifier: Classifier) -> Iterator[None]:
    training = classifier.training
    classifier.eval()
    try:
        yield
    finally:
        classifier.train(training)


def _not_run(
    classifier: Classifier, images: Tensor, config: ClassifierConfig, section: str, reason: str
) -> str:
    """Describe a network that failed on four images for `reason`: the image or the batch size is to blame."""
    try:
        classifier(images[:1])
    except Exception:  # the network may be anyone's
        size = config.size_text
        return f"{section}.image_size is {size}, but {config.name} cannot run on a {size} image ({reason})"
    return (
        f"{section}.name: {config.name} runs on one image but not on four ({reason}); "
        "its forward must accept any batch size"
    )
