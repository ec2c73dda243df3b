"""Which sizes are tried, and where the search ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.config.compute import ComputeConfig

WORTH_IT = 1.05
"""A larger size must be faster by this factor; what it costs is memory."""
OF_ANY_SIZE = (8, 16, 32, 64, 128, 256, 512, 1024)
IN_CHUNKS = (32, 64, 128, 256)
"""OpenVINO compiles for chunks of 32 at most, see runtime/sizes.py: only the first two cost a compilation."""
BUILT_ANEW = (16, 64, 256)
"""Each costs a build of minutes."""


@dataclass(frozen=True)
class Reading:
    """What a stage did when it was given images by so many at once."""

    size: int
    """Those that memory held, at most those asked for."""
    rate: float
    """Images a second."""


def candidates(compute: ComputeConfig, most: int) -> Sequence[int]:
    """Sizes to try, ascending, none above `most`, which is all that the stage is ever given."""
    if compute.runtime == "tensorrt" or compute.compile:
        sizes: Sequence[int] = BUILT_ANEW
    else:
        sizes = IN_CHUNKS if compute.runtime == "openvino" else OF_ANY_SIZE
    return [size for size in sizes if size <= most] or [most]


def best(
    sizes: Sequence[int], measure: Callable[[int], Reading], fits: Callable[[int, int], bool]
) -> Reading:
    """The reading of the first of the ascending `sizes` that the next one is not worth its memory after.

    `fits(now, next)`: whether memory will hold `next` after `now` has run. It ends, too, at the first size
    that memory did not hold.
    """
    found = measure(sizes[0])
    for before, size in zip(sizes, sizes[1:], strict=False):
        if found.size < before or not fits(before, size):
            break
        reading = measure(size)
        if reading.size < size or reading.rate < WORTH_IT * found.rate:
            break
        found = reading
    return found
