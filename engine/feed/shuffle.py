"""Random access into shuffles that are never stored."""

import numpy as np
import numpy.typing as npt

from engine.feed.hashing import GAMMA, UInt, hashed

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
