"""Check whether a mean and a standard deviation are for images in [0, 1]."""

import math
from collections.abc import Sequence

MIN_STD = 1 / 65535  # of a network for 16-bit values


def misfit(mean: Sequence[float], std: Sequence[float]) -> str | None:
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
