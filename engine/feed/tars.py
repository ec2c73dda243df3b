"""Read single images from the tars of shards."""

import math
import os
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from engine.errors import UserError
from engine.feed.index import Locations

Bytes = npt.NDArray[np.uint8]
_NPY_HEADER = 128
"""Size of numpy's header before the pixels of a `.npy` file, in bytes."""
_MAX_OPEN = 128
"""Number of tars that are kept open; the least recently used one is closed first."""


class TarReader:
    """Random access to images in tars with `pread`. Its memory does not grow with the bank."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[str, int] = OrderedDict()  # by the path of the tar

    def read_raw(self, locations: Locations, shape: tuple[int, int, int]) -> Bytes:
        """Return the pixels of `.npy` members, uint8 [N, *shape]; `shape` is (H, W, C).

        Raises:
            UserError: if an image has another size or is cut off.
        """
        images = np.empty((len(locations.sizes), *shape), np.uint8)
        pixels = math.prod(shape)
        for position in np.flatnonzero(locations.sizes != pixels + _NPY_HEADER).tolist():
            raise image_error(locations, position, f"it is not {'x'.join(map(str, shape))}")
        of_pixels = locations._replace(
            offsets=locations.offsets + locations.sizes - pixels, sizes=np.full(len(images), pixels)
        )
        self._read(of_pixels, images.data.cast("B"))
        return images

    def read_encoded(self, locations: Locations) -> list[Bytes]:
        """Return the encoded files of the images, uint8 [bytes] each. Raises UserError if one is cut off."""
        buffer = np.empty(int(locations.sizes.sum()), np.uint8)
        self._read(locations, buffer.data)
        return np.split(buffer, np.cumsum(locations.sizes)[:-1])

    def _read(self, locations: Locations, into: memoryview) -> None:
        """Fill `into` with the bytes at all locations, one after another."""
        begin = 0
        parts = zip(locations.paths, locations.offsets.tolist(), locations.sizes.tolist(), strict=True)
        for position, (path, offset, size) in enumerate(parts):
            if os.preadv(self._descriptor(path), (into[begin : begin + size],), offset) != size:
                raise image_error(locations, position, "the tar ends before it does")
            begin += size

    def _descriptor(self, path: str) -> int:
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._descriptors[path] = _open(path)
            if len(self._descriptors) > _MAX_OPEN:
                os.close(self._descriptors.popitem(last=False)[1])
        else:
            self._descriptors.move_to_end(path)
        return descriptor

    def close(self) -> None:
        """Close all tars; a later read opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; restore the shard or regenerate it") from None


def image_error(locations: Locations, position: int, reason: str) -> UserError:
    """Return the error for an unusable image: the one at `position` in `locations`, counted from 0."""
    return UserError(
        f"{locations.paths[position]}: image {locations.keys[position]} cannot be used: {reason};"
        " restore the shard or regenerate it"
    )
