"""Settings of a classifier, the teacher or the student."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.errors import SettingsError

MIN_STD = 1 / 65535  # of a network for 16-bit values
ONE_LOGIT = (
    "one logit always has probability 1; for a binary classifier with logit z, set num_classes to 2 and "
    "return torch.cat([torch.zeros_like(z), z], 1)"
)


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A classifier: the teacher or the student of a recipe."""

    name: str
    """Network: engine:NAME, timm:NAME, torchvision:NAME, or package.module:factory, a function that takes
    num_classes and in_channels and returns the network."""

    weights: str | None = None
    """File of the teacher's state dict: .safetensors, a file of torch.save, or the .index.json of a sharded
    checkpoint; null for the student, which starts from random weights."""

    weights_key: str | None = None
    """Dotted path of the state dict in the file, such as state_dict_ema; needed only if several state dicts
    in the file fit, such as raw and EMA weights."""

    num_classes: int = 10
    """Number of classes, the width of the logits."""

    in_channels: int = 3
    """Channels of the network's input: 3 (RGB) or 1 (luma)."""

    image_size: int = 32
    """Height and width of the images in pixels."""

    mean: tuple[float, ...] = (0.5,)
    """Mean to subtract from the image in [0, 1]: one number, or one per channel."""

    std: tuple[float, ...] = (0.5,)
    """Standard deviation to divide by after that: one number, or one per channel."""

    output: str | int | None = None
    """Which of the network's outputs holds the logits, if several could: a key such as logits, an index such
    as 0, or a dotted path of these."""

    feature: str | None = None
    """Path of the submodule whose output is the feature map before pooling; null uses the network's own
    feature_path, which only engine:NAME networks have."""

    def check(self, section: str) -> None:
        """Raise SettingsError for values out of range; the message names `section` and the fields."""
        if faults := tuple(self.faults(section)):
            raise SettingsError(faults)

    def faults(self, section: str) -> Iterator[str]:
        """Yield a line for each value out of range, which begins with `section` and the field."""
        for field, value in (("num_classes", self.num_classes), ("image_size", self.image_size)):
            if value < 1:
                yield f"{section}.{field} must be a positive integer, got {value}"
        if self.num_classes == 1:
            yield f"{section}.num_classes is 1: {ONE_LOGIT}"
        if self.in_channels not in (1, 3):
            yield f"{section}.in_channels must be 1 (grey) or 3 (RGB), got {self.in_channels}"
            return  # mean and std may have a number for each channel
        are_well_formed = True
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.in_channels) or not all(map(math.isfinite, values)):
                are_well_formed = False
                yield (
                    f"{section}.{field} must be 1 finite number, or {self.in_channels} (one for each of "
                    f"{section}.in_channels), got {list(values)}"
                )
        if not are_well_formed:
            return
        if min(self.std) <= 0:
            yield f"{section}.std must be above 0, got {list(self.std)}"
        elif fault := normalization_fault(self.mean, self.std):
            yield f"{section}.mean {list(self.mean)} and {section}.std {list(self.std)} {fault}"


def normalization_fault(mean: Sequence[float], std: Sequence[float]) -> str | None:
    """Return the end of a message that starts with "mean [...] and std [...]", or None if both are plausible.

    The mean of a network for inputs in 0..255 is also given for [0, 1], with std 1/255.
    """
    if not all(map(math.isfinite, (*mean, *std))):
        return "must be finite numbers"
    if max(mean) > 1 or max(std) > 5:  # a channel of photographs has a std of at least about 40 of 255
        scale_std = max(std) > 1 or (max(mean) > 1 and max(std) == 1)  # Caffe computes (255 x - mean) / 1
        scaled = _scaled(mean, 1 / 255 if max(mean) > 1 else 1), _scaled(std, 1 / 255 if scale_std else 1)
        if _is_plausible(*scaled):
            return f"are on the 0..255 scale, but images are in [0, 1] here; divide by 255: {_text(*scaled)}"
    elif 0 < max(mean) < 1 / 255 and max(std) < 1 / 255:
        scaled = _scaled(mean, 255), _scaled(std, 255)
        return (
            f"are too small for images in [0, 1] (divided by 255 twice?); multiply by 255: {_text(*scaled)}"
        )
    if not _is_plausible(mean, std):
        return (
            "do not fit images in [0, 1]: the mean must be in [0, 1] and std above 0 (1/65535 at least) "
            "and at most 1"
        )
    return None


def _is_plausible(mean: Sequence[float], std: Sequence[float]) -> bool:
    return min(mean) >= 0 and max(mean) <= 1 and min(std) >= MIN_STD and max(std) <= 1


def _scaled(values: Sequence[float], factor: float) -> list[float]:
    return [float(f"{value * factor:.6g}") for value in values]


def _text(mean: Sequence[float], std: Sequence[float]) -> str:
    return f"mean {list(mean)}, std {list(std)}"
