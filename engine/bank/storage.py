"""Read and write the files of a bank, in a local folder or at an fsspec URL.

Writes are atomic: a file is complete or absent. Failures raise OSError with the file's name.
"""

import errno
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

from engine.atomic import replacing
from engine.bank.fingerprint import DamagedError, Fingerprint
from engine.bank.manifest import FOLDERS
from engine.errors import UserError
from export.disk import fsync
from export.locks import exclusive, exclusive_if_free

LOCK = ".lock"


def absolute(url: str) -> str:
    """Return a folder's absolute path; return a URL unchanged."""
    return url if "://" in url else str(Path(url).expanduser().absolute())


def open_storage(url: str) -> "Storage":
    """Open the folder at a path or URL, which need not exist. Raises UserError for an unknown kind of URL."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme in ("file", "local"):
        return LocalStorage(Path(rest if separator else url).expanduser())
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        package = "dda-engine[s3]" if scheme in ("s3", "s3a") else "its package"
        raise UserError(f"{url}: {error}; pip install {package}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}; give a folder, or a URL that fsspec can open") from None
    return RemoteStorage(url.rstrip("/"), filesystem, path.rstrip("/"))


class Storage(ABC):
    """A bank's folder. File names are relative to it: `00000.tar` or, in FOLDERS, `rows/00000.parquet`."""

    url: str
    token: str | None = None
    """Identifies this writer's manifests; None if `lock` excludes other writers."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[bool]:
        """Lock the folder until the context ends; yield False if another process has locked it.

        A folder without locks always yields True.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """Return all file names in the folder and its FOLDERS, sorted; empty if the folder does not exist."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if it does not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises FileNotFoundError if it does not exist."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file atomically."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file."""

    @abstractmethod
    def local(self, name: str, expected: Fingerprint, cache: Path, *, verify: bool) -> Path:
        """Return the path of a local file with that content: the bank's own, or a copy in the folder `cache`.

        Without `verify` only a new download is hashed.

        Raises:
            DamagedError: if the file is missing or its content differs.
        """

    def unlisted(self, name: str, cache: Path) -> Path | None:
        """Return a local path of a file whose fingerprint is not known, or None if it does not exist."""
        try:
            data = self.read(name)
        except FileNotFoundError:
            return None

        def copy(to: Path) -> None:
            to.write_bytes(data)

        return cached_copy(cache, Path(name).suffix, Fingerprint.of(data), copy, verify=False)

    def fingerprint(self, name: str) -> Fingerprint | None:
        """Return the fingerprint of a file, or None if it does not exist."""
        try:
            return Fingerprint.of(self.read(name))
        except FileNotFoundError:
            return None


class LocalStorage(Storage):
    """A local folder, protected by a file lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)
        self._writer = uuid.uuid4().hex

    @contextmanager
    def lock(self) -> Iterator[bool]:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.url} is a file; give a folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        fsync(self.folder.parent)
        with exclusive_if_free(self.folder / LOCK) as free:
            yield free

    def names(self) -> list[str]:
        found = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        inner = {name for name in FOLDERS if name in found and (self.folder / name).is_dir()}
        files = (f"{name}/{path.name}" for name in inner for path in (self.folder / name).iterdir())
        return sorted([*(found - inner), *files])

    def size(self, name: str) -> int | None:
        try:
            with errors_naming(f"{self.url}/{name}"):
                return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        with errors_naming(f"{self.url}/{name}"):
            return (self.folder / name).read_bytes()

    def fingerprint(self, name: str) -> Fingerprint | None:
        try:
            with errors_naming(f"{self.url}/{name}"):
                return Fingerprint.of_file(self.folder / name)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        with errors_naming(f"{self.url}/{name}"):
            if path.parent != self.folder and not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                fsync(self.folder)
            with replacing(path, writer=self._writer) as part:
                part.write_bytes(data)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def unlisted(self, name: str, cache: Path) -> Path | None:  # noqa: ARG002
        return None if self.size(name) is None else self.folder / name

    def local(self, name: str, expected: Fingerprint, cache: Path, *, verify: bool) -> Path:  # noqa: ARG002
        if verify:
            expected.require(self.fingerprint(name))
        return self.folder / name


class RemoteStorage(Storage):
    """A folder of an fsspec file system with atomic puts, such as an object store. It has no locks."""

    def __init__(self, url: str, filesystem: Any, path: str) -> None:
        self.url = url
        self.token = uuid.uuid4().hex
        self._filesystem = filesystem
        self._path = path

    def lock(self) -> AbstractContextManager[bool]:
        return nullcontext(True)

    def names(self) -> list[str]:
        found = self._listed("")
        inner = found.intersection(FOLDERS)
        files = (f"{name}/{file}" for name in inner for file in self._listed(f"/{name}"))
        return sorted([*(found - inner), *files])

    def _listed(self, below: str) -> set[str]:
        """Return the names in the folder, or in the subfolder `below`, such as "/rows"."""
        path = self._path + below
        try:
            with errors_naming(self.url + below):
                found = self._filesystem.ls(path, detail=False)
        except FileNotFoundError:
            return set()
        return {PurePosixPath(each).name for each in found if each.strip("/") != path.strip("/")}

    def size(self, name: str) -> int | None:
        try:
            with errors_naming(f"{self.url}/{name}"):
                size: int = self._filesystem.size(self._path_of(name))
                return size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        with errors_naming(f"{self.url}/{name}"):
            return self._filesystem.cat_file(self._path_of(name))

    def write(self, name: str, data: bytes) -> None:
        with errors_naming(f"{self.url}/{name}"):
            self._filesystem.pipe_file(self._path_of(name), data)

    def remove(self, name: str) -> None:
        with errors_naming(f"{self.url}/{name}"):
            self._filesystem.rm_file(self._path_of(name))

    def local(self, name: str, expected: Fingerprint, cache: Path, *, verify: bool) -> Path:
        def download(to: Path) -> None:
            with errors_naming(f"{self.url}/{name} (to {to})"):
                self._filesystem.get_file(self._path_of(name), str(to))

        try:
            return cached_copy(cache, Path(name).suffix, expected, download, verify=verify)
        except FileNotFoundError:
            raise DamagedError("is missing") from None

    def _path_of(self, name: str) -> str:
        return f"{self._path}/{name}"


@contextmanager
def errors_naming(path: str) -> Iterator[None]:
    """Turn any exception into an OSError that names `path`; remote file systems raise many kinds."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), path) from error
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", path) from error


def cached_copy(
    folder: Path, suffix: str, expected: Fingerprint, download: Callable[[Path], None], *, verify: bool
) -> Path:
    """Return the path of a file's copy in `folder`, and download the file if there is no valid copy.

    With `verify` an existing copy is hashed first. Only one process downloads; the others wait for it.

    Raises:
        DamagedError: if the download does not have the expected content; it is deleted.
    """
    path = folder / expected.sha256[:2] / f"{expected.sha256}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.with_suffix(".lock"), on_wait=lambda: None):
        if not path.exists() or (verify and Fingerprint.of_file(path) != expected):
            with replacing(path) as part:
                download(part)
                expected.require(Fingerprint.of_file(part))
    return path
