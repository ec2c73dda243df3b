"""SHA-256 of files, and folders whose `entry.json` lists the size and SHA-256 of every file."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.disk import fsync
from export.errors import ExportError

ENTRY_FILE = "entry.json"


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal, as sha256sum prints it."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_entry(folder: Path, key: dict[str, Any]) -> None:
    """Write `entry.json` for a folder of plain files, and flush the folder to the disk."""
    entry = {
        "key": key,
        "created": datetime.now(UTC).isoformat(),
        "files": {path.name: _fingerprint(path) for path in sorted(folder.iterdir())},
    }
    (folder / ENTRY_FILE).write_text(json.dumps(entry, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        fsync(path)
    fsync(folder)


def verify(folder: Path, key: dict[str, Any]) -> None:
    """Check that the folder belongs to `key` and holds exactly the files that `entry.json` lists.

    Raises ExportError for a missing, extra, changed or linked file.
    """
    if folder.is_symlink():
        raise ExportError(f"{folder} is a link, not a folder of this store; delete it to have it rebuilt")
    entry = _read_entry(folder)
    if entry["key"] != key:
        raise _altered(folder, ENTRY_FILE, "does not belong to this entry")
    present = {path.name for path in folder.iterdir()} - {ENTRY_FILE}
    for name in sorted(present ^ entry["files"].keys()):
        what = "is missing" if name in entry["files"] else "does not belong to this entry"
        raise _altered(folder, name, what)
    for name, fingerprint in entry["files"].items():
        path = folder / name
        if not _is_plain(path):
            raise _altered(folder, name, "is not a plain file")
        if _fingerprint(path) != fingerprint:
            raise _altered(folder, name, "was altered")


def read(folder: Path, name: str) -> bytes:
    """Return the bytes of one file. Raises ExportError unless exactly these bytes match its hash."""
    fingerprint = _read_entry(folder)["files"].get(name)
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise _altered(folder, name, "is missing") from None
    if fingerprint != {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}:
        raise _altered(folder, name, "was altered")
    return data


def _read_entry(folder: Path) -> dict[str, Any]:
    path = folder / ENTRY_FILE
    if not _is_plain(path):
        raise _altered(folder, ENTRY_FILE, "is missing or not a plain file")
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise _altered(folder, ENTRY_FILE, "was altered") from None
    if not (isinstance(entry, dict) and isinstance(entry.get("files"), dict) and "key" in entry):
        raise _altered(folder, ENTRY_FILE, "was altered")
    return entry


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _fingerprint(path: Path) -> dict[str, int | str]:
    assert _is_plain(path), f"{path}: entries are flat folders of plain files"
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _altered(folder: Path, name: str, what: str) -> ExportError:
    return ExportError(f"{folder / name} {what}; delete the folder {folder} to have it rebuilt")
