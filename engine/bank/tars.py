"""Tar files of one kind only: what is read must have, byte for byte, the headers that are written here.

POSIX ustar; regular files with plain names, owner, mode and time fixed; two zero blocks end it.
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


class Member(NamedTuple):
    """A file in a tar; its first byte is at `offset`."""

    name: str
    offset: int
    size: int


class TarError(ValueError):
    """What is wrong, with the member's name or place; not with the tar's."""


def pack(files: Iterable[tuple[str, bytes]]) -> tuple[bytes, list[Member]]:
    """The tar of named files, and where they lie in it."""
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
    """The members of the tar at `path`, all headers checked; raises TarError."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise TarError("is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return members(data)


def members(data: bytes | mmap.mmap) -> list[Member]:
    """The members of a tar, all headers checked; raises TarError."""
    found: list[Member] = []
    at, last = 0, len(data) - len(END)
    while at < last:
        header = data[at : at + BLOCK]
        end = header.find(b"\0")
        name = header[:end]
        try:
            size = int(header[124:135], 8)
        except ValueError:
            size = -1
        if size < 0 or header != _header(name, size) or not _NAME.fullmatch(name):
            raise TarError(f"member {_shown(name)} at byte {at}: {_fault(header)}")
        found.append(Member(name.decode(), at + BLOCK, size))
        at += BLOCK + size + -size % BLOCK
    if at != last or data[last:] != END:
        raise TarError(f"does not end after {len(found)} members: it is cut off or something follows")
    return found


def _header(name: bytes, size: int) -> bytes:
    """512 bytes; the checksum is the sum of all bytes with blanks in its own place."""
    digits = b"%011o\0" % size
    checksum = _FIXED_SUM + sum(name) + sum(digits)
    return b"".join((name.ljust(100, b"\0"), _MODE_AND_OWNER, digits, _TIME, b"%06o\0 " % checksum, _REST))


_KINDS = {
    b"1": "a hard link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a fifo",
}
_KINDS |= {b"x": "a pax entry", b"g": "a pax entry", b"L": "a GNU extension", b"K": "a GNU extension"}


def _fault(header: bytes) -> str:
    """Why a header is refused."""
    kind = header[156:157]
    if kind in _KINDS:
        return f"is {_KINDS[kind]}; only regular files are allowed"
    if not _NAME.fullmatch(header[:100].rstrip(b"\0")):
        return "its name is not plain (letters, digits and _.- alone)"
    return "its header is not as it was written (checksum, size, owner, mode or time)"


def _shown(name: bytes) -> str:
    return repr(name[:100].decode("ascii", "backslashreplace"))
