"""Size and SHA-256 of files, to detect damage."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = 1 << 20


class DamagedError(Exception):
    """A file is damaged; the message says how, without naming the file."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The size and hash of one file."""

    size: int
    """Bytes."""
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "Fingerprint":
        return cls(len(data), hashlib.sha256(data).hexdigest())

    @classmethod
    def of_stream(cls, stream: BinaryIO) -> "Fingerprint":
        digest, size = hashlib.sha256(), 0
        while block := stream.read(BLOCK):
            digest.update(block)
            size += len(block)
        return cls(size, digest.hexdigest())

    @classmethod
    def of_file(cls, path: Path) -> "Fingerprint":
        with path.open("rb") as stream:
            return cls.of_stream(stream)

    def damage(self, found: "Fingerprint | None") -> str | None:
        """Return how the file is damaged if its fingerprint now is `found`, or None if it is sound.

        `found` is None if the file is missing.
        """
        if found is None:
            return "is missing"
        if found.size != self.size:
            return f"has {found.size} bytes, not {self.size}"
        return None if found == self else "was altered (its SHA-256 differs)"

    def require(self, found: "Fingerprint | None") -> None:
        """Raise DamagedError if `found` differs."""
        if damage := self.damage(found):
            raise DamagedError(damage)


def fingerprints(contents: Mapping[str, bytes]) -> dict[str, Fingerprint]:
    """Return the fingerprint of each file by name."""
    return {name: Fingerprint.of(data) for name, data in contents.items()}
