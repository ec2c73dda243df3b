"""Flush files to the disk, and recognize a full disk in the errors that libraries raise."""

import errno
import os
import re
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BY_TEXT = {os.strerror(number): number for number in FULL}


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def full_disk(error: BaseException, path: object) -> OSError | None:
    """Return an OSError that names `path` if `error` means a full disk, a quota or a file size limit.

    Libraries raise such errors without a file name, wrapped in their own exceptions, or as text alone.
    Returns None for any other error.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else _number(str(cause))
        if number in FULL:
            return OSError(number, os.strerror(number), str(path))
        cause = cause.__cause__ or cause.__context__
    return None


def _number(text: str) -> int | None:
    found = re.search("|".join(map(re.escape, _BY_TEXT)), text)
    return _BY_TEXT[found[0]] if found else None
