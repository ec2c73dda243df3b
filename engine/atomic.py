"""Files that are whole or absent, however the process ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.disk import full_disk
from export.sealed import fsync


@contextmanager
def replacing(path: Path, *, writer: str = "") -> Iterator[Path]:
    """A temporary name beside `path` to write under; then fsynced and renamed onto it, or removed on error.

    A full disk is an OSError that names `path`, whatever the library that writes says of it.

    The temporary name keeps the suffix, so that writers that go by it work; it has the word `writer` in it,
    for a file that several processes may write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{writer}part{path.suffix}")
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    except Exception as error:
        if (failure := full_disk(error, path)) is None:
            raise
        raise failure from error
    finally:
        temporary.unlink(missing_ok=True)
