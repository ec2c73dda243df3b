"""Write tar files, and read only tar files whose headers match byte for byte what is written here.

The format is POSIX ustar: regular files with plain names and a fixed owner, mode and time, then two zero
blocks.
"""

import mmap
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
END = bytes(2 * BLOCK)

_NAME = re.compile(rb"[0-9A-Za-z_][0-9A-Za-z_.-]{0,98}")
_MODE_AND_OWNER = b"%07o\0%07o\0%07o\0" % (0o644, 0, 0)
_TIME = b"%011o\0" % 0
_TYPE = b"0"
_MAGIC = b"ustar\0" + b"00"
_REST = _TYPE + bytes(100) + _MAGIC + bytes(247)
_FIXED_SUM = sum(_MODE_AND_OWNER + _TIME + b" " * 8 + _REST)
_KINDS = {
    b"1": "a hard link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a fifo",
    b"x": "a pax entry",
    b"g": "a pax entry",
    b"L": "a GNU extension",
    b"K": "a GNU extension",
}
"""Members that are not regular files, by type flag."""


class Member(NamedTuple):
    """A file in a tar; `offset` is the position of its first byte."""

    name: str
    offset: int
    size: int


class TarError(ValueError):
    """A tar is damaged or hostile; the message names the member, but not the tar."""


def pack(files: Iterable[tuple[str, bytes]]) -> tuple[bytes, list[Member]]:
    """Return a tar of the named files and its members."""
    parts: list[bytes] = []
    members: list[Member] = []
    offset = 0
    for name, data in files:
        size = len(data)
        parts += (_header(name.encode(), size), data, bytes(-size % BLOCK))
        members.append(Member(name, offset + BLOCK, size))
        offset += BLOCK + size + -size % BLOCK
    parts.append(END)
    return b"".join(parts), members


def walk(path: Path) -> list[Member]:
    """Return the members of the tar at `path`. Raises TarError if a header is not as `pack` writes it."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise TarError("is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return members(data)


def members(data: bytes | mmap.mmap) -> list[Member]:
    """Return the members of a tar. Raises TarError if a header is not as `pack` writes it."""
    found: list[Member] = []
    position, last = 0, len(data) - len(END)
    while position < last:
        header = data[position : position + BLOCK]
        end = header.find(b"\0")
        name = header[:end]
        try:
            size = int(header[124:135], 8)
        except ValueError:
            size = -1
        if size < 0 or header != _header(name, size) or not _NAME.fullmatch(name):
            raise TarError(f"member {_shown(name)} at byte {position}: {_fault(header)}")
        found.append(Member(name.decode(), position + BLOCK, size))
        position += BLOCK + size + -size % BLOCK
    if position != last or data[last:] != END:
        raise TarError(f"does not end after {len(found)} members: it is cut off, or has trailing data")
    return found


def _header(name: bytes, size: int) -> bytes:
    """Return the header block, 512 bytes. The checksum sums all bytes, counting itself as blanks."""
    digits = b"%011o\0" % size
    checksum = _FIXED_SUM + sum(name) + sum(digits)
    return b"".join((name.ljust(100, b"\0"), _MODE_AND_OWNER, digits, _TIME, b"%06o\0 " % checksum, _REST))


def _fault(header: bytes) -> str:
    """Return why a header is rejected."""
    kind = header[156:157]
    if kind in _KINDS:
        return f"is {_KINDS[kind]}; only regular files are allowed"
    if not _NAME.fullmatch(header[:100].rstrip(b"\0")):
        return "its name is not plain (only letters, digits, _, . and - are allowed)"
    return "its header is not as it was written (checksum, size, owner, mode or time)"


def _shown(name: bytes) -> str:
    return repr(name[:100].decode("ascii", "backslashreplace"))
