"""What the files of a bank are called."""

import re

MANIFEST = "manifest.json"
CARD = "README.md"
STATUS = ".status.json"
"""What the writer says of its progress; no part of the bank."""

SUFFIXES = (".tar", ".idx", ".parquet", "_stats.json")
"""Of the files of a shard: images, where they lie, one row an image, counts."""

_SHARD = re.compile(rf"(\d{{5,}})({'|'.join(map(re.escape, SUFFIXES))})")
_PART = re.compile(r"\.(\d{5,}(_stats)?|manifest|README|\.status)\.[0-9a-f]*part\.\w+")


def shard_name(number: int) -> str:
    """e.g. 00007"""
    return f"{number:05d}"


def shard_files(number: int) -> tuple[str, ...]:
    """The names of a shard's files, in the order of SUFFIXES."""
    return tuple(shard_name(number) + suffix for suffix in SUFFIXES)


def shard_number(name: str) -> int | None:
    """Of which shard a file is, None where it is of none."""
    match = _SHARD.fullmatch(name)
    return int(match[1]) if match and name in shard_files(int(match[1])) else None


def is_part(name: str) -> bool:
    """Whether a killed writer left the file under its temporary name."""
    return _PART.fullmatch(name) is not None
