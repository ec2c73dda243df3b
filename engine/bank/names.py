"""What the files of a bank are called."""

import re
from pathlib import PurePosixPath
from typing import NamedTuple

MANIFEST = "manifest.json"
CARD = "README.md"
STATUS = ".status.json"
"""What the writer says of its progress; no part of the bank."""
FOLDERS = ("index", "rows", "stats")
"""The only folders in a bank: a folder with nothing but parquet files in it is a table to other tools."""

_PART = re.compile(r"((index|rows|stats)/)?\.(\d{5,}|manifest|README|\.status)\.[0-9a-f]*part\.\w+")


class ShardFiles(NamedTuple):
    """The names of a shard's files."""

    tar: str
    """Images."""
    dali_index: str
    """Where they lie in the tar."""
    rows: str
    """One row an image, rejected ones too."""
    stats: str
    """Counts."""


def shard_name(number: int) -> str:
    """e.g. 00007"""
    return f"{number:05d}"


def shard_files(number: int) -> ShardFiles:
    name = shard_name(number)
    return ShardFiles(f"{name}.tar", f"index/{name}.idx", f"rows/{name}.parquet", f"stats/{name}.json")


def version_1_files(number: int) -> ShardFiles:
    """As banks had them that have a manifest of version 1."""
    name = shard_name(number)
    return ShardFiles(f"{name}.tar", f"{name}.idx", f"{name}.parquet", f"{name}_stats.json")


def shard_number(name: str) -> int | None:
    """Return the number of the shard that a file belongs to, None if it belongs to none."""
    stem = PurePosixPath(name).stem
    number = int(stem) if re.fullmatch(r"[0-9]{5,}", stem) else None
    return number if number is not None and name in shard_files(number) else None


def is_part(name: str) -> bool:
    """Whether a killed writer left the file under its temporary name."""
    return _PART.fullmatch(name) is not None


def is_hidden(name: str) -> bool:
    """Whether the file is no part of a bank: a lock, a status, a temporary name."""
    return PurePosixPath(name).name.startswith(".")
