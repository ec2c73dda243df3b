"""Reads single images out of the shards' tars."""

import math
import os
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from engine.errors import UserError
from engine.feed.index import Spots

Bytes = npt.NDArray[np.uint8]
_NPY_HEADER = 128
"""Bytes before the pixels of a `.npy` file of an image: numpy's header, padded to a multiple of 64."""
_OPEN = 128
"""Tars that are held open; the one used least recently is closed for another."""


class Tars:
    """Random access to images in tars by `pread`: no memory is mapped, none grows with the bank."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[str, int] = OrderedDict()  # by the tar's path

    def raw(self, spots: Spots, shape: tuple[int, int, int]) -> Bytes:
        """uint8 [N, *shape]: the pixels, which end a `.npy` member; `shape` is H, W, C.

        Raises UserError, as `encoded` does, for an image that is not there in full.
        """
        images = np.empty((len(spots.sizes), *shape), np.uint8)
        pixels = math.prod(shape)
        for place in np.flatnonzero(spots.sizes != pixels + _NPY_HEADER).tolist():
            raise damaged(spots, place, f"it is not {'x'.join(map(str, shape))}")
        of_pixels = spots._replace(
            offsets=spots.offsets + spots.sizes - pixels, sizes=np.full(len(images), pixels)
        )
        self._read(of_pixels, images.data.cast("B"))
        return images

    def encoded(self, spots: Spots) -> list[Bytes]:
        """The files of the images, uint8 [bytes] each, as they are in the tars."""
        buffer = np.empty(int(spots.sizes.sum()), np.uint8)
        self._read(spots, buffer.data)
        return np.split(buffer, np.cumsum(spots.sizes)[:-1])

    def _read(self, spots: Spots, into: memoryview) -> None:
        """Fill `into` with the bytes of each spot, one after another."""
        begin = 0
        parts = zip(spots.paths, spots.offsets.tolist(), spots.sizes.tolist(), strict=True)
        for place, (path, offset, size) in enumerate(parts):
            if os.preadv(self._descriptor(path), (into[begin : begin + size],), offset) != size:
                raise damaged(spots, place, "the tar ends before it does")
            begin += size

    def _descriptor(self, path: str) -> int:
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._descriptors[path] = _opened(path)
            if len(self._descriptors) > _OPEN:
                os.close(self._descriptors.popitem(last=False)[1])
        else:
            self._descriptors.move_to_end(path)
        return descriptor

    def close(self) -> None:
        """Close what is open; a later read opens it again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; restore the shard or make it anew") from None


def damaged(spots: Spots, place: int, reason: str) -> UserError:
    """The error for an image, the `place`-th of the spots, that cannot be used."""
    return UserError(
        f"{spots.paths[place]}: image {spots.keys[place]} cannot be used: {reason};"
        " restore the shard or make it anew"
    )
