"""A cache of build results (ONNX graphs, engines, compiled models), keyed by what they were built from.

An entry is a folder named by its key. It is built under another name, hashed, flushed to the disk and
renamed, so it is either complete or absent. Every lookup verifies its hashes. `.locks` holds two lock files
per entry: `NAME.build`, held exclusively to build or remove it, and `NAME.use`, shared by its users.
`.beside/NAME` holds files that a runtime derives from the entry for this machine. They count towards the
entry's size and are removed with it, but are not verified here.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import hashed, locks
from export.disk import fsync, full_disk

logger = logging.getLogger(__name__)

DERIVED = ".beside"
PART = ".part-"
"""Name prefix of a folder being built or removed. Only the holder of the build lock may touch it."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """Identifies an entry. `parts` are by name, such as the hash of the weights or the builder's version."""

    network: str
    kind: str
    precision: str
    parts: Mapping[str, str]

    def __post_init__(self) -> None:
        assert re.fullmatch(r"[\w-]+", self.network), self
        assert re.fullmatch(r"\w+", self.kind), self
        assert re.fullmatch(r"\w+", self.precision), self

    def fields(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "kind": self.kind,
            "precision": self.precision,
            "parts": dict(self.parts),
        }

    @property
    def digest(self) -> str:
        """SHA-256 over all fields, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.fields(), sort_keys=True).encode()).hexdigest()

    @property
    def family(self) -> str:
        """Name prefix of all entries that differ only in `parts`."""
        return f"{self.network}-{self.kind}-{self.precision}-"

    @property
    def name(self) -> str:
        return self.family + self.digest[:16]


class Store:
    """The entries in `folder`, limited to `max_bytes` in total except for those in use.

    An entry is in use, and never removed, from its first lookup until this store is closed or its process
    ends. Builds, waits and removals are logged.
    """

    def __init__(self, folder: Path, *, max_bytes: int = 20 << 30) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._used: dict[str, int] = {}
        (folder / ".locks").mkdir(mode=0o700, parents=True, exist_ok=True)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        while self._used:
            os.close(self._used.popitem()[1])

    def get(self, key: Key, build: Callable[[Path], None], *, doing: str = "building") -> Path:
        """Return the verified folder of an entry. If there is none, `build` fills an empty folder first.

        `doing` is the verb for `build` in the log. Only one process builds an entry; the others wait.
        Raises ExportError for an altered entry, and whatever `build` raises, leaving nothing behind.
        """
        while (entry := self.find(key)) is None:
            self._build_alone(key, build, doing)
        self._remove_leftovers()
        self._shrink()
        return entry

    def find(self, key: Key) -> Path | None:
        """Return the verified folder of an entry, or None. Raises ExportError if it was altered."""
        if key.name not in self._used:
            self._used[key.name] = locks.shared(self._lock(key.name, "use"))
        entry = self.folder / key.name
        if not os.path.lexists(entry):
            return None
        hashed.verify(entry, key.fields())
        os.utime(entry / hashed.ENTRY_FILE)
        return entry

    def derived_folder(self, entry: Path) -> Path:
        """Return the folder for files derived from an entry, created if missing; the entry must be in use."""
        folder = self.folder / DERIVED / entry.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def read(self, entry: Path, name: str) -> bytes:
        """Return a file of an entry. Raises ExportError if the bytes differ from those that were built."""
        return hashed.read(entry, name)

    def _build_alone(self, key: Key, build: Callable[[Path], None], doing: str) -> None:
        def on_wait() -> None:
            logger.info(f"{key.network}: waiting for another process to build {key.kind} {key.precision}")

        with locks.exclusive(self._lock(key.name, "build"), on_wait):
            if not os.path.lexists(self.folder / key.name):
                logger.info(f"{key.network}: {self._reason(key, doing)}")
                self._build(key, build)

    def _build(self, key: Key, build: Callable[[Path], None]) -> None:
        part = self.folder / f"{PART}{key.name}"
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(mode=0o700)
            build(part)
            hashed.write_entry(part, key.fields())
            part.rename(self.folder / key.name)
            fsync(self.folder)
        except BaseException as error:
            shutil.rmtree(part, ignore_errors=True)
            if (failure := full_disk(error, part)) is not None:
                raise failure from error
            raise

    def _reason(self, key: Key, doing: str) -> str:
        """Explain why an entry is built, by comparison with the newest one that differs only in `parts`."""
        what = f"{key.kind} {key.precision}"
        earlier = []
        for file in self.folder.glob(f"{key.family}*/{hashed.ENTRY_FILE}"):
            with suppress(OSError, ValueError, LookupError, TypeError):
                read = json.loads(file.read_text(encoding="utf-8"))
                earlier.append((read["created"], dict(read["key"]["parts"])))
        if not earlier:
            return f"{doing} {what} for the first time"
        newest = max(earlier, key=lambda entry: entry[0])[1]
        changed = [part for part in {**newest, **key.parts} if newest.get(part) != key.parts.get(part)]
        listed = " and ".join(filter(None, (", ".join(changed[:-1]), *changed[-1:])))
        return f"{listed} changed, {doing} {what} again"

    def _remove_leftovers(self) -> None:
        """Remove the folders of processes that were killed while building or removing."""
        for part in self.folder.glob(f"{PART}*"):
            name = part.name.removeprefix(PART)
            with locks.exclusive_if_free(self._lock(name, "build")) as free:
                if free:
                    shutil.rmtree(part, ignore_errors=True)

    def _shrink(self) -> None:
        """Remove entries that are not in use, least recently used first, until the rest fits."""
        with locks.exclusive_if_free(self.folder / ".locks" / "shrink") as free:
            entries = self._sizes_by_use() if free else {}
            excess = sum(entries.values()) - self.max_bytes
            for name, size in entries.items():
                if excess > 0 and self._remove(name):
                    excess -= size
                    logger.info(
                        f"removed {name}, the least recently used ({size / 1e9:.2f} GB),"
                        f" to keep {self.folder} under {self.max_bytes / 1e9:.2f} GB"
                    )

    def _sizes_by_use(self) -> dict[str, int]:
        """Return the bytes of each entry with its derived files; orphans first, then by time of last use."""
        files = sorted(
            self.folder.glob(f"[!.]*/{hashed.ENTRY_FILE}"), key=lambda file: file.stat().st_mtime_ns
        )
        entries = [file.parent.name for file in files]
        orphans = {path.name for path in (self.folder / DERIVED).glob("*")} - set(entries)
        return {
            name: _bytes(self.folder / name) + _bytes(self.folder / DERIVED / name)
            for name in (*sorted(orphans), *entries)
        }

    def _remove(self, name: str) -> bool:
        """Remove an entry unless it is in use; return whether it was removed."""
        with (
            locks.exclusive_if_free(self._lock(name, "build")) as unbuilt,
            locks.exclusive_if_free(self._lock(name, "use")) as unused,
        ):
            if not (unbuilt and unused):
                return False
            part = self.folder / f"{PART}{name}"
            shutil.rmtree(part, ignore_errors=True)
            if (self.folder / name).exists():
                (self.folder / name).rename(part)
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(self.folder / DERIVED / name, ignore_errors=True)
            return True

    def _lock(self, name: str, purpose: str) -> Path:
        return self.folder / ".locks" / f"{name}.{purpose}"


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another process may replace derived files
            total += path.lstat().st_size if not path.is_dir() else 0
    return total
