"""The few verbs of a bank's folder, the same for a local one and one at an fsspec URL.

A file that is written is whole or absent. What fails raises OSError that names the file.
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
from export.locks import exclusive, exclusive_if_free
from export.sealed import fsync


def local_copy(
    folder: Path, suffix: str, expected: Fingerprint, download: Callable[[Path], None], *, verify: bool
) -> Path:
    """The copy in `folder`; where there is none, or `verify` finds it altered, `download` writes it anew.

    Of several processes one downloads, the others wait for it. Raises DamagedError where the download has
    another content, and keeps nothing of it.
    """
    path = folder / expected.sha256[:2] / f"{expected.sha256}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.with_suffix(".lock"), on_wait=lambda: None):
        if not path.exists() or (verify and Fingerprint.of_file(path) != expected):
            with replacing(path) as part:
                download(part)
                expected.require(Fingerprint.of_file(part))
    return path


LOCK = ".lock"


def absolute(url: str) -> str:
    """A folder's path as processes with another working directory find it; a URL as it is."""
    return url if "://" in url else str(Path(url).expanduser().absolute())


def open_storage(url: str) -> "Storage":
    """The folder at a path or URL, which need not exist. Raises UserError for a URL that nothing opens."""
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
        raise UserError(f"{url}: {error}; give a folder, or a URL that fsspec opens") from None
    return RemoteStorage(url.rstrip("/"), filesystem, path.rstrip("/"))


class Storage(ABC):
    """A bank's folder. Names are of files in it or in one of its FOLDERS, such as `rows/00000.parquet`."""

    url: str
    token: str | None = None
    """By which this writer knows its own manifests; None where `alone` shuts others out."""

    @abstractmethod
    def alone(self) -> AbstractContextManager[bool]:
        """Whether no other process writes here; it holds until the context ends."""

    @abstractmethod
    def names(self) -> list[str]:
        """All names in the folder and its FOLDERS, sorted; none if there is no folder."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """In bytes; None where there is no such file."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def remove(self, name: str) -> None: ...

    @abstractmethod
    def local(self, name: str, expected: Fingerprint, cache: Path, *, verify: bool) -> Path:
        """A file of this machine with that content: the bank's own, or a copy of it in the folder `cache`.

        Raises DamagedError where it is otherwise; without `verify` only what is downloaded is hashed.
        """

    def fingerprint(self, name: str) -> Fingerprint | None:
        """None where there is no such file."""
        try:
            return Fingerprint.of(self.read(name))
        except FileNotFoundError:
            return None


class LocalStorage(Storage):
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)
        self._writer = uuid.uuid4().hex

    @contextmanager
    def alone(self) -> Iterator[bool]:
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
            with naming(f"{self.url}/{name}"):
                return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        with naming(f"{self.url}/{name}"):
            return (self.folder / name).read_bytes()

    def fingerprint(self, name: str) -> Fingerprint | None:
        try:
            with naming(f"{self.url}/{name}"):
                return Fingerprint.of_file(self.folder / name)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        with naming(f"{self.url}/{name}"):
            if path.parent != self.folder and not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                fsync(self.folder)
            with replacing(path, writer=self._writer) as part:
                part.write_bytes(data)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def local(self, name: str, expected: Fingerprint, cache: Path, *, verify: bool) -> Path:  # noqa: ARG002
        if verify:
            expected.require(self.fingerprint(name))
        return self.folder / name


class RemoteStorage(Storage):
    """A folder of an fsspec file system whose puts are whole or absent, as those of object stores are."""

    def __init__(self, url: str, filesystem: Any, path: str) -> None:
        self.url = url
        self.token = uuid.uuid4().hex
        self._filesystem = filesystem
        self._path = path

    def alone(self) -> AbstractContextManager[bool]:
        return nullcontext(True)

    def names(self) -> list[str]:
        found = self._listed("")
        inner = found.intersection(FOLDERS)
        files = (f"{name}/{file}" for name in inner for file in self._listed(f"/{name}"))
        return sorted([*(found - inner), *files])

    def _listed(self, below: str) -> set[str]:
        """The names in the folder, or in one in it."""
        path = self._path + below
        try:
            with naming(self.url + below):
                found = self._filesystem.ls(path, detail=False)
        except FileNotFoundError:
            return set()
        return {PurePosixPath(each).name for each in found if each.strip("/") != path.strip("/")}

    def size(self, name: str) -> int | None:
        try:
            with naming(f"{self.url}/{name}"):
                size: int = self._filesystem.size(self._at(name))
                return size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        with naming(f"{self.url}/{name}"):
            return self._filesystem.cat_file(self._at(name))

    def write(self, name: str, data: bytes) -> None:
        with naming(f"{self.url}/{name}"):
            self._filesystem.pipe_file(self._at(name), data)

    def remove(self, name: str) -> None:
        with naming(f"{self.url}/{name}"):
            self._filesystem.rm_file(self._at(name))

    def local(self, name: str, expected: Fingerprint, cache: Path, *, verify: bool) -> Path:
        def download(to: Path) -> None:
            with naming(f"{self.url}/{name} (to {to})"):
                self._filesystem.get_file(self._at(name), str(to))

        try:
            return local_copy(cache, Path(name).suffix, expected, download, verify=verify)
        except FileNotFoundError:
            raise DamagedError("is missing") from None

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Whatever fails inside is an OSError that names `path`; remote file systems raise many kinds."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), path) from error
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", path) from error
