"""A cache of built things (ONNX graphs, engines, compiled models), found by what they were built from.

An entry is a folder named by its key. It is built under another name, hashed, written through to the disk and
renamed, so that it is whole or absent; each use verifies every byte. `.locks` holds two lock files an entry:
`NAME.build`, held alone by who builds or removes it, and `NAME.use`, shared by who uses it. `.beside/NAME`
has what a runtime derives from the entry for this machine; it counts with the entry and goes with it, and
nothing here verifies it.
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

from export import locks, sealed
from export.disk import full_disk

logger = logging.getLogger(__name__)

BESIDE = ".beside"
PART = ".part-"
"""Starts the name of a folder being built or removed; who holds its build lock may touch it."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """What determines an entry. `parts`: by name, e.g. the hash of the weights, the builder's version."""

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
        """SHA-256 over all fields, hexadecimal."""
        return hashlib.sha256(json.dumps(self.fields(), sort_keys=True).encode()).hexdigest()

    @property
    def family(self) -> str:
        """Starts the names of all entries that differ in `parts` alone."""
        return f"{self.network}-{self.kind}-{self.precision}-"

    @property
    def name(self) -> str:
        return self.family + self.digest[:16]


class Store:
    """The entries in `folder`, of at most `max_bytes` in all but for those in use.

    What it was asked for stays in use, safe from removal by any process, until the store or its process ends.
    Builds, waits and removals are logged.
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
        """The verified folder of the entry; where there is none, `build` fills the empty folder it is given.

        `doing` is the verb for `build` in the log. Of several processes one builds, the others wait for it.
        Raises ExportError for an altered entry, and what `build` raises, leaving nothing behind.
        """
        while (entry := self.find(key)) is None:
            self._build_alone(key, build, doing)
        self._remove_leftovers()
        self._shrink()
        return entry

    def find(self, key: Key) -> Path | None:
        """The verified folder of the entry, or None. Raises ExportError for an altered entry."""
        if key.name not in self._used:
            self._used[key.name] = locks.shared(self._lock(key.name, "use"))
        entry = self.folder / key.name
        if not os.path.lexists(entry):
            return None
        sealed.verify(entry, key.fields())
        os.utime(entry / sealed.CARD)
        return entry

    def beside(self, entry: Path) -> Path:
        """The folder for what is derived from an entry that is in use."""
        folder = self.folder / BESIDE / entry.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def read(self, entry: Path, name: str) -> bytes:
        """The bytes of a file of an entry, proved to be those that were built, or ExportError."""
        return sealed.read(entry, name)

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
            sealed.seal(part, key.fields())
            part.rename(self.folder / key.name)
            sealed.fsync(self.folder)
        except BaseException as error:
            shutil.rmtree(part, ignore_errors=True)
            if (failure := full_disk(error, part)) is not None:
                raise failure from error
            raise

    def _reason(self, key: Key, doing: str) -> str:
        """Why there is no such entry, by comparison with the newest that differs in parts alone."""
        what = f"{key.kind} {key.precision}"
        earlier = []
        for card in self.folder.glob(f"{key.family}*/{sealed.CARD}"):
            with suppress(OSError, ValueError, LookupError, TypeError):
                read = json.loads(card.read_text(encoding="utf-8"))
                earlier.append((read["created"], dict(read["key"]["parts"])))
        if not earlier:
            return f"{doing} {what} for the first time"
        newest = max(earlier, key=lambda one: one[0])[1]
        changed = [part for part in {**newest, **key.parts} if newest.get(part) != key.parts.get(part)]
        return f"{' and '.join(changed)} changed, {doing} {what} anew"

    def _remove_leftovers(self) -> None:
        """Removes what killed builders and removers left."""
        for part in self.folder.glob(f"{PART}*"):
            name = part.name.removeprefix(PART)
            with locks.exclusive_if_free(self._lock(name, "build")) as free:
                if free:
                    shutil.rmtree(part, ignore_errors=True)

    def _shrink(self) -> None:
        """Removes the least recently used of the entries that nobody uses until all that is left fits."""
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
        """Bytes of each entry and what is beside it; first what is beside none, then by the latest use."""
        cards = sorted(self.folder.glob(f"[!.]*/{sealed.CARD}"), key=lambda card: card.stat().st_mtime_ns)
        entries = [card.parent.name for card in cards]
        alone = {path.name for path in (self.folder / BESIDE).glob("*")} - set(entries)
        return {
            name: _bytes(self.folder / name) + _bytes(self.folder / BESIDE / name)
            for name in (*sorted(alone), *entries)
        }

    def _remove(self, name: str) -> bool:
        """Whether the entry was free, and is gone now."""
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
            shutil.rmtree(self.folder / BESIDE / name, ignore_errors=True)
            return True

    def _lock(self, name: str, purpose: str) -> Path:
        return self.folder / ".locks" / f"{name}.{purpose}"


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another process may replace files beside an entry
            total += path.lstat().st_size if not path.is_dir() else 0
    return total
