"""Settings of a classifier, the teacher or the student."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from engine.errors import SettingsError

CHANNELS = (1, 2, 3, 4)
GREY = (1, 2)
"""Numbers of channels without colour: luma, or luma and alpha."""
MIN_STD = 1 / 65535  # of a network for 16-bit values
ONE_LOGIT = (
    "one logit always has probability 1; for a binary classifier with logit z, set num_classes to 2 and "
    "return torch.cat([torch.zeros_like(z), z], 1)"
)


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A classifier: the teacher or the student of a recipe."""

    name: str = ""
    """Network: timm:NAME, torchvision:NAME, hf:FOLDER (Hugging Face's format), engine:NAME, or
    package.module:factory, a function that returns the network. The student's may stay empty: a smaller
    network of the teacher's family."""

    weights: str | None = None
    """File of the teacher's state dict: .safetensors, a file of torch.save, or the .index.json of a sharded
    checkpoint; null for the student, which starts from random weights."""

    weights_key: str | None = None
    """Dotted path of the state dict in the file, such as state_dict_ema; needed only if several state dicts
    in the file fit, such as raw and EMA weights."""

    num_classes: int | None = None
    """Number of classes, the width of the logits; null reads it from the weights. The student's is the
    teacher's."""

    in_channels: int | None = None
    """Channels of the network's input: 1 (luma), 2 (luma and alpha), 3 (RGB) or 4 (RGB and alpha; images are
    opaque); null reads it from the weights. The student's is the teacher's."""

    image_size: int | tuple[int, int] | None = None
    """Size of the images in pixels: the side of a square, or [height, width]; null takes what the network's
    own configuration says. The student's is the teacher's."""

    mean: float | tuple[float, ...] | None = None
    """Mean to subtract from the image in [0, 1]: one number, or one per channel; null takes what the
    network's own configuration says. The student's is the teacher's."""

    std: float | tuple[float, ...] | None = None
    """Standard deviation to divide by after that: one number, or one per channel; null as for mean."""

    output: str | int | None = None
    """Which of the network's outputs holds the logits, if several could: a key such as logits, an index such
    as 0, or a dotted path of these."""

    feature: str | None = None
    """Path of the submodule that returns the feature map before pooling; null finds it by running the
    network."""

    def __post_init__(self) -> None:
        """Make a single number for all channels a tuple of one."""
        for name in ("mean", "std"):
            object.__setattr__(self, name, _tuple(getattr(self, name)))

    @property
    def is_resolved(self) -> bool:
        """Whether nothing is left to read from the network."""
        return None not in (self.num_classes, self.in_channels, self.image_size, self.mean, self.std)

    @property
    def has_unread_weights(self) -> bool:
        """Whether its weights are not set, but come with its configuration, as Hugging Face's do."""
        return self.weights is None and self.name.startswith("hf:")

    @property
    def classes(self) -> int:
        """`num_classes` of a resolved recipe."""
        assert self.num_classes is not None
        return self.num_classes

    @property
    def channels(self) -> int:
        """`in_channels` of a resolved recipe."""
        assert self.in_channels is not None
        return self.in_channels

    @property
    def is_grey(self) -> bool:
        """Whether the network of a resolved recipe sees one colour channel."""
        return self.channels in GREY

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a resolved recipe's images in pixels."""
        assert self.image_size is not None
        return _pair(self.image_size)

    @property
    def size_text(self) -> str:
        """Height and width as 224x224."""
        return "x".join(map(str, self.size))

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of a resolved recipe."""
        mean, std = _tuple(self.mean), _tuple(self.std)
        assert mean is not None
        assert std is not None
        return mean, std

    def for_channels(self, channels: int) -> Self:
        """Return the settings for a network of `channels` channels, with mean and std adapted to them.

        Grey takes the mean over the colours. Alpha, if it has no number of its own, takes the last one.
        """
        mean, std = _tuple(self.mean), _tuple(self.std)
        return replace(
            self,
            in_channels=channels,
            mean=mean and _adapted(mean, channels),
            std=std and _adapted(std, channels),
        )

    def check(self, section: str) -> None:
        """Raise SettingsError for values out of range; the message names `section` and the fields."""
        if faults := tuple(self.faults(section)):
            raise SettingsError(faults)

    def faults(self, section: str) -> Iterator[str]:
        """Yield a line for each value out of range, which begins with `section` and the field."""
        if not self.name and section == "teacher":
            yield (
                f"{section}.name is not set; give timm:NAME, torchvision:NAME, hf:FOLDER, engine:NAME or "
                "package.module:factory"
            )
        sides = () if self.image_size is None else _pair(self.image_size)
        if self.num_classes is not None and self.num_classes < 1:
            yield f"{section}.num_classes must be a positive integer, got {self.num_classes}"
        if sides and min(sides) < 1:
            yield f"{section}.image_size must be a positive integer or two, got {self.image_size}"
        if self.num_classes == 1:
            yield f"{section}.num_classes is 1: {ONE_LOGIT}"
        if self.in_channels is not None and self.in_channels not in CHANNELS:
            yield f"{section}.in_channels must be 1, 2, 3 or 4, got {self.in_channels}"
            return
        yield from self._normalization_faults(section)

    def _normalization_faults(self, section: str) -> Iterator[str]:
        widths = CHANNELS if self.in_channels is None else (1, self.in_channels)
        plausible = True
        mean, std = _tuple(self.mean), _tuple(self.std)  # without __post_init__ while the checks have not run
        for field, values in (("mean", mean), ("std", std)):
            if values is not None and not (len(values) in widths and all(map(math.isfinite, values))):
                each = f"{self.in_channels} (one for each of {section}.in_channels)"
                several = each if self.in_channels else "one per channel"
                yield f"{section}.{field} must be 1 finite number, or {several}, got {list(values)}"
                plausible = False
        if std and min(std) <= 0:
            yield f"{section}.std must be above 0, got {list(std)}"
            plausible = False
        if not plausible or mean is None or std is None:
            return
        if fault := normalization_fault(mean, std):
            yield f"{section}.mean {list(mean)} and {section}.std {list(std)} {fault}"


def _tuple(numbers: float | tuple[float, ...] | None) -> tuple[float, ...] | None:
    return (float(numbers),) if isinstance(numbers, int | float) else numbers


def _adapted(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) in (1, channels):
        return values
    if channels in GREY:
        return (sum(values[:3]) / len(values[:3]),) * channels
    return (*values, values[-1])[:channels]


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


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
