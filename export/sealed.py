"""Folders whose files are proved unaltered: `entry.json` holds the size and SHA-256 of each."""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.errors import ExportError

CARD = "entry.json"


def seal(folder: Path, key: dict[str, Any]) -> None:
    """Writes the card of a folder of plain files and waits until all of it is on the disk."""
    card = {
        "key": key,
        "created": datetime.now(UTC).isoformat(),
        "files": {path.name: _fingerprint(path) for path in sorted(folder.iterdir())},
    }
    (folder / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        fsync(path)
    fsync(folder)


def verify(folder: Path, key: dict[str, Any]) -> None:
    """Raises ExportError unless the folder holds exactly the files of its card, and the card is of `key`."""
    if folder.is_symlink():
        raise ExportError(f"{folder} is a link, not a folder of this store; delete it to have it built anew")
    card = _card(folder)
    if card["key"] != key:
        raise _altered(folder, CARD, "is not of this entry")
    present = {path.name for path in folder.iterdir()} - {CARD}
    for name in sorted(present ^ card["files"].keys()):
        raise _altered(folder, name, "is missing" if name in card["files"] else "is not of this entry")
    for name, fingerprint in card["files"].items():
        path = folder / name
        if not _plain(path):
            raise _altered(folder, name, "is not a plain file")
        if _fingerprint(path) != fingerprint:
            raise _altered(folder, name, "was altered")


def read(folder: Path, name: str) -> bytes:
    """The bytes of one file, hashed after they were read: what is returned is what was sealed."""
    fingerprint = _card(folder)["files"].get(name)
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise _altered(folder, name, "is missing") from None
    if fingerprint != {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}:
        raise _altered(folder, name, "was altered")
    return data


def fsync(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    if not _plain(path):
        raise _altered(folder, CARD, "is missing or not a plain file")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise _altered(folder, CARD, "was altered") from None
    if not (isinstance(card, dict) and isinstance(card.get("files"), dict) and "key" in card):
        raise _altered(folder, CARD, "was altered")
    return card


def _plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _fingerprint(path: Path) -> dict[str, int | str]:
    assert _plain(path), f"{path}: entries are flat folders of plain files"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _altered(folder: Path, name: str, what: str) -> ExportError:
    return ExportError(f"{folder / name} {what}; delete the folder {folder} to have it built anew")
