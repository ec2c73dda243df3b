"""Random bits as a pure function of what they are for, over whole arrays."""

import numpy as np
import numpy.typing as npt

UInt = npt.NDArray[np.uint64]

GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, odd: its multiples are far from each other."""
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def hashed(*parts: int | npt.NDArray[np.integer]) -> UInt:
    """64 random bits for every tuple of the broadcast parts; never a scalar, at least shape [1].

    SplitMix64's output function (Steele, Lea & Flood, OOPSLA 2014) over the state mixed with one part after
    another, so (1, 2) and (2, 1) differ. Wraps modulo 2^64, alike on every platform.
    """
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _finalised((state ^ np.asarray(part).astype(np.uint64)) + GAMMA)
    return state


def _finalised(state: UInt) -> UInt:
    state = (state ^ (state >> _SHIFTS[0])) * _FIRST
    state = (state ^ (state >> _SHIFTS[1])) * _SECOND
    return state ^ (state >> _SHIFTS[2])
