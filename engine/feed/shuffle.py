"""Random access into shuffles that are never stored."""

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


_ROUNDS, _LEAST_BITS = 8, 6
"""With fewer, where two places go is not independent in two million shuffles of up to a hundred things."""
_ONE = np.uint64(1)


def permuted(places: UInt, sizes: UInt, keys: UInt) -> UInt:
    """Where `places` < `sizes` go under the shuffles of range(size) named by `keys`; all broadcast to [N].

    A Feistel network over the bits that hold `size`, its halves uneven where their number is odd, with a hash
    as the round function (Luby & Rackoff 1988); a result outside the range goes through it again until it is
    inside ("cycle walking", Black & Rogaway 2002), less than twice on average where size > 32.
    """
    walked, sizes, keys = (np.array(each) for each in np.broadcast_arrays(places, sizes, keys))
    outside = np.arange(len(walked))
    while len(outside):
        walked[outside] = _enciphered(walked[outside], _bits(sizes[outside]), keys[outside])
        outside = outside[walked[outside] >= sizes[outside]]
    return walked


def _enciphered(values: UInt, bits: UInt, keys: UInt) -> UInt:
    """A bijection of the numbers of so many bits."""
    low_bits = bits - bits // np.uint64(2)
    low_mask = (_ONE << low_bits) - _ONE
    high_mask = (_ONE << (bits - low_bits)) - _ONE
    low, high = values & low_mask, values >> low_bits
    for _ in range(_ROUNDS // 2):
        low, keys = low ^ (hashed(keys ^ high) & low_mask), keys + GAMMA
        high, keys = high ^ (hashed(keys ^ low) & high_mask), keys + GAMMA
    return (high << low_bits) | low


def _bits(sizes: UInt) -> UInt:
    """The fewest bits that hold all below each size, which is at most 2^53; at least _LEAST_BITS."""
    exponents: npt.NDArray[np.int32] = np.frexp((sizes - _ONE).astype(np.float64))[1]
    return np.maximum(exponents, _LEAST_BITS).astype(np.uint64)


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
