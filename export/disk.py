"""Disks that take no more, by whatever exception a library says so."""

import errno
import os
import re

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BY_TEXT = {os.strerror(number): number for number in FULL}


def full_disk(error: BaseException, path: object) -> OSError | None:
    """The OSError that names `path` if `error` comes from a disk that is full, a quota or a limit of size.

    Libraries give it without a name, hidden behind an exception of their own, or as text alone.
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
