"""Reads single images out of the shards' tars."""

import os
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from engine.errors import UserError
from engine.feed.index import Index, Int

Bytes = npt.NDArray[np.uint8]
_NPY_HEADER = 128
"""Bytes before the pixels of a `.npy` file of an image: numpy's header, padded to a multiple of 64."""
_OPEN = 128
"""Tars that are held open; the one used least recently is closed for another."""


class Tars:
    """Random access to the images of an index by `pread`: no memory is mapped, none grows with the bank."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._descriptors: OrderedDict[int, int] = OrderedDict()  # by the shard's number

    def raw(self, rows: Int, image_size: tuple[int, int]) -> Bytes:
        """uint8 [B, H, W, 3]: the pixels, which end a `.npy` member.

        Raises UserError, as `encoded` does, for an image that is not there in full.
        """
        images = np.empty((len(rows), *image_size, 3), np.uint8)
        shards, offsets, sizes = self._index.spots(rows)
        pixels = images[0].nbytes
        for row in rows[sizes != pixels + _NPY_HEADER]:
            raise self.damaged(row, f"it is not {image_size[0]}x{image_size[1]}")
        lengths = np.full(len(rows), pixels)
        self._read(rows, shards, offsets + sizes - pixels, lengths, images.data.cast("B"))
        return images

    def encoded(self, rows: Int) -> list[Bytes]:
        """The files of the images, uint8 [bytes] each, as they are in the tars."""
        shards, offsets, sizes = self._index.spots(rows)
        buffer = np.empty(int(sizes.sum()), np.uint8)
        self._read(rows, shards, offsets, sizes, buffer.data)
        return np.split(buffer, np.cumsum(sizes)[:-1])

    def _read(self, rows: Int, shards: Int, offsets: Int, lengths: Int, into: memoryview) -> None:
        """Fill `into` with so many bytes from each place, one after another."""
        begin = 0
        places = zip(shards.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
        for number, (shard, offset, length) in enumerate(places):
            if os.preadv(self._descriptor(shard), (into[begin : begin + length],), offset) != length:
                raise self.damaged(rows[number], "the tar ends before it does")
            begin += length

    def _descriptor(self, shard: int) -> int:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            descriptor = self._descriptors[shard] = self._opened(shard)
            if len(self._descriptors) > _OPEN:
                os.close(self._descriptors.popitem(last=False)[1])
        else:
            self._descriptors.move_to_end(shard)
        return descriptor

    def _opened(self, shard: int) -> int:
        path = self._index.shards[shard].path
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; restore the shard or make it anew") from None

    def require_size(self, row: int, found: tuple[int, ...], wanted: tuple[int, int]) -> None:
        """Raises the error of an image of another height or width."""
        if tuple(found) != wanted:
            raise self.damaged(row, f"it is {found[0]}x{found[1]}, not {wanted[0]}x{wanted[1]}")

    def damaged(self, row: int, reason: str) -> UserError:
        """The error for an image that cannot be used."""
        at = np.array([row])
        path = self._index.shards[int(self._index.shard_numbers(at)[0])].path
        key = int(self._index.keys(at)[0])
        return UserError(f"{path}: image {key} cannot be used: {reason}; restore the shard or make it anew")

    def close(self) -> None:
        """Close what is open; a later read opens it again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
