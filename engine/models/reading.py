"""Read from the teacher, its weights and its library's configuration what a recipe leaves open."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.config.classifier import ClassifierConfig
from engine.config.recipe import Recipe, derived
from engine.errors import UserError
from engine.models.factory import is_factory
from engine.models.fitting import auxiliary_heads, widths
from engine.models.outputs import entries
from engine.models.proposal import propose_student
from engine.models.sources import HF_PROCESSOR, Stated, build, stated
from engine.models.unwrapping import unwrapped
from engine.models.weights import read_weights
from engine.paths import resolve

logger = logging.getLogger(__name__)

PROBE_CLASSES = 1009
"""A prime number of classes, so that layers of this width are the head."""
OTHER_CLASSES = 1013
"""Another one: a network of as many outputs for both decides the number itself."""
HINTS = {
    "num_classes": "10",
    "in_channels": "3",
    "image_size": "28",
    "mean": "[0.5]",
    "std": "[0.5]",
}
"""An example of each field that may be missing."""


@dataclass(kw_only=True)
class Reading:
    """A classifier's settings with everything filled in that could be read, and where it was read."""

    config: ClassifierConfig
    class_names: tuple[str, ...] | None = None
    origins: dict[str, str] = field(default_factory=dict)
    """Where each field was read, by its name; fields that the recipe sets are not in it."""

    def fill(self, name: str, value: Any, origin: str) -> None:
        """Set a field of the configuration, unless it is set or `value` is None."""
        if value is not None and getattr(self.config, name) is None:
            self.config = replace(self.config, **{name: value})
            self.origins[name] = origin

    @property
    def is_size_assumed(self) -> bool:
        """Whether the size is a library's default, although the weights may be trained at another size."""
        return "image_size" in self.origins and self.config.name.startswith(("timm:", "torchvision:"))

    def filled_into(self, recipe: Recipe) -> Recipe:
        """Return the recipe with these settings as its teacher's, and with names for the classes."""
        names = recipe.class_names or self.class_names or placeholder_names(self.config.classes)
        return replace(recipe, teacher=self.config, class_names=names)


def read(recipe: Recipe) -> Recipe:
    """Return the recipe with nothing left open that its networks decide.

    Classes and channels are read from the teacher's weights, size, normalization and class names from its
    library's configuration. The student takes the teacher's values. Without a name it becomes a smaller
    network of the same family. Reads nothing if the recipe leaves nothing open.

    Raises:
        UserError: if something is open that cannot be read; the message names all such settings.
    """
    if not recipe.is_teacher_read:
        reading = read_teacher(recipe.teacher)
        recipe = reading.filled_into(recipe)
        logger.info("teacher: %s", _described(reading))
        if reading.is_size_assumed:
            logger.info("teacher: if it was trained on images of another size, give --teacher.image_size")
    student = recipe.student
    if not student.name:
        proposal = propose_student(recipe.teacher)
        student = replace(student, name=proposal.name)
        logger.info("student: %s", proposal.reason)
    return derived(replace(recipe, student=student))


def placeholder_names(num_classes: int) -> tuple[str, ...]:
    """Return the names of classes that nobody has named: the numbers from 0."""
    return tuple(map(str, range(num_classes)))


def read_teacher(config: ClassifierConfig, section: str = "teacher") -> Reading:
    """Return the settings of a trained classifier with all fields filled in.

    Raises:
        UserError: if the network cannot be built, its weights do not fit, or a field cannot be read; the
            message names all fields that are missing.
    """
    config.check(section)
    reading = Reading(config=config)
    network, has_probe = _probe_network(config, section)
    said = stated(config, network, section)
    if said.weights is not None:
        reading.fill("weights", str(said.weights), said.source)
    _read_widths(reading, network, said, section, has_probe=has_probe)
    for name in ("in_channels", "image_size", "mean", "std"):
        reading.fill(name, getattr(said, name), said.source)
    if reading.config.num_classes is None and reading.config.image_size is not None:
        reading.fill("num_classes", _classes_by_running(reading.config, section), "its output")
    _require_all(reading.config, section)
    _warn_of_auxiliary_heads(reading, network, section)
    reading.config = reading.config.for_channels(reading.config.channels)
    reading.config.check(section)
    if said.class_names is not None and len(said.class_names) == reading.config.num_classes:
        reading.class_names = said.class_names
        reading.origins["class_names"] = said.source
    return reading


def _probe_network(
    config: ClassifierConfig, section: str, num_classes: int = PROBE_CLASSES
) -> tuple[nn.Module, bool]:
    """Build the network without memory for its weights, if possible. Return also whether it has a probe head.

    A network whose configuration states its classes, as Hugging Face's do, is built for those.
    """
    has_probe = config.num_classes is None and not config.name.startswith("hf:")
    probe = replace(config, num_classes=num_classes) if has_probe else config
    for device in (torch.device("meta"), None):
        try:
            with torch.random.fork_rng(devices=[]), device or nullcontext():
                return unwrapped(build(probe, section)), has_probe
        except Exception as error:  # not every constructor runs on the meta device
            if device is not None:
                continue
            is_code = is_factory(config.name) and ":" in config.name
            if has_probe and is_code and not isinstance(error.__cause__, ImportError):
                raise UserError(
                    f"{error}; it was tried with {num_classes} classes: if it needs the real number, set "
                    f"{section}.num_classes"
                ) from error
            raise
    raise AssertionError


def _read_widths(
    reading: Reading, network: nn.Module, said: Stated, section: str, *, has_probe: bool
) -> None:
    """Read from the weights what is open, and match the auxiliary heads of `network` to them."""
    config = reading.config
    if config.weights is None:
        raise UserError(
            f"{section}.weights is not set; give the .safetensors or .pth file of the trained network"
        )
    if None not in (config.num_classes, config.in_channels) and not auxiliary_heads(network):
        return
    reading.fill("num_classes", said.num_classes, said.source)
    path = resolve(config.weights, f"{section}.weights")
    found = widths(
        network,
        read_weights(path, f"{section}.weights"),
        key=config.weights_key,
        num_classes=PROBE_CLASSES if has_probe else config.num_classes or said.num_classes or 0,
        in_channels=config.in_channels or said.in_channels or 3,
        section=section,
        file=path,
    )
    reading.fill("num_classes", found.num_classes, "its weights")
    reading.fill("in_channels", found.in_channels, "its weights")


def _warn_of_auxiliary_heads(reading: Reading, network: nn.Module, section: str) -> None:
    """Warn if nothing says how the input of torchvision's googlenet or inception_v3 is normalized.

    torchvision's own weights need a conversion (see `fit`), others do not. Fine-tuned with auxiliary heads,
    their files look the same.
    """
    config = reading.config
    is_guessed = not reading.origins.keys().isdisjoint(("mean", "std"))
    if is_guessed and config.name.startswith("torchvision:") and auxiliary_heads(network):
        logger.warning(
            "%s.weights has auxiliary heads, so it does not say whether %s was fine-tuned from torchvision's "
            "weights; if it was, give --%s.mean '[0.5]' --%s.std '[0.5]'",
            section,
            config.name,
            section,
            section,
        )


def _classes_by_running(config: ClassifierConfig, section: str) -> int | None:
    """Return the number of outputs of a network that decides its number of classes itself."""
    try:
        networks = [_probe_network(config, section, number)[0] for number in (PROBE_CLASSES, OTHER_CLASSES)]
    except UserError:  # it does not decide it
        return None
    found = {_outputs(network, config) for network in networks}
    return found.pop() if len(found) == 1 else None


def _outputs(network: nn.Module, config: ClassifierConfig) -> int | None:
    """Return the width of the only output [1, C] of a network, or None."""
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    images = torch.zeros(1, config.in_channels or 3, *config.size, device=device)
    try:
        with torch.no_grad():
            output = network.eval()(images)
    except Exception:  # the network may be anyone's; loading it says what is wrong
        return None
    found = {tensor.shape[1] for _, _, tensor in entries(output) if _may_be_logits(tensor)}
    return found.pop() if len(found) == 1 else None


def _may_be_logits(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and len(tensor) == 1 and tensor.is_floating_point()


def _require_all(config: ClassifierConfig, section: str) -> None:
    missing = [name for name in HINTS if getattr(config, name) is None]
    if missing:
        listed = ", ".join(f"{section}.{name}" for name in missing)
        flags = " ".join(f"--{section}.{name} '{HINTS[name]}'" for name in missing)
        instead = ""
        if is_factory(config.name):
            instead = (
                ", or give the network the attribute pretrained_cfg with input_size, mean and std, as timm's "
                "networks have"
            )
        elif config.name.startswith("hf:"):
            instead = f", or add the {HF_PROCESSOR} that it was published with"
        raise UserError(f"{listed} cannot be read from {config.name}; set them, e.g. {flags}{instead}")


def _described(reading: Reading) -> str:
    """Describe what was read, in one line."""
    config, said = reading.config, reading.origins
    mean, std = config.normalization
    parts = {
        "num_classes": f"{config.classes:,} classes",
        "in_channels": f"{config.channels} channels" if config.channels > 1 else "grey",
        "image_size": f"{config.size_text} pixels",
        "mean": f"mean {list(mean)}, std {list(std)}",
    }
    by_origin: dict[str, list[str]] = {}
    for name, text in parts.items():
        by_origin.setdefault(said.get(name, "the recipe"), []).append(text)
    listed = "; ".join(f"{', '.join(texts)} ({origin})" for origin, texts in by_origin.items())
    return f"{config.name}: {listed}"
