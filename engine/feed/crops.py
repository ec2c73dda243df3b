"""Random crop offsets and flips from random bits."""

import numpy as np
import numpy.typing as npt

from engine.feed.hashing import UInt

Offsets = npt.NDArray[np.int32]
PAD = 4
"""Zeros around an image that a crop may reach into."""
_FIELD = np.uint64(31)
_MASK = np.uint64((1 << 31) - 1)


def crops(bits: UInt) -> tuple[Offsets, Offsets, npt.NDArray[np.bool_]]:
    """top, left int32 [N] in [0, 2 * PAD] and flip bool [N], each from its own part of uint64 `bits` [N].

    Uniform but for a bias below 2 PAD / 2^31.
    """
    choices = np.uint64(2 * PAD + 1)
    top = ((bits & _MASK) * choices) >> _FIELD
    left = (((bits >> _FIELD) & _MASK) * choices) >> _FIELD
    return top.astype(np.int32), left.astype(np.int32), bits >> np.uint64(63) == 1
