"""Random crop offsets and flips from random bits."""

import numpy as np
import numpy.typing as npt

from engine.feed.hashing import UInt

Offsets = npt.NDArray[np.int32]
PAD = 4
"""Zeros around an image that a crop may reach into, unless told otherwise."""
_FIELD = np.uint64(31)
_MASK = np.uint64((1 << 31) - 1)


def crops(bits: UInt, *, pad: int = PAD, flip: bool = True) -> tuple[Offsets, Offsets, npt.NDArray[np.bool_]]:
    """top, left int32 [N] in [0, 2 * pad] and flip bool [N], each from its own part of uint64 `bits` [N].

    Uniform but for a bias below 2 pad / 2^31. Without `flip` none is mirrored.
    """
    choices = np.uint64(2 * pad + 1)
    top = ((bits & _MASK) * choices) >> _FIELD
    left = (((bits >> _FIELD) & _MASK) * choices) >> _FIELD
    return top.astype(np.int32), left.astype(np.int32), (bits >> np.uint64(63) == 1) & flip
