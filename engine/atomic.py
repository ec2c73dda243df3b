"""Atomic writes: a file is complete or absent, however the process ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.disk import fsync, full_disk


@contextmanager
def replacing(path: Path, *, writer: str = "") -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success fsync it and rename it to `path`.

    On an error the temporary file is removed. A full disk raises an OSError that names `path`, whatever the
    writing library raised. The temporary name keeps the suffix, which some writers depend on. If several
    processes may write the file, give each its own `writer`, which becomes part of the name.
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
