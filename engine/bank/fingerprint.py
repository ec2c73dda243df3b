"""Size and SHA-256, by which a file is known to be unaltered."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = 1 << 20


class DamagedError(Exception):
    """What is wrong with a file, without its name."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of one file."""

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
        """What is wrong with a file that should have this fingerprint, None where nothing is."""
        if found is None:
            return "is missing"
        if found.size != self.size:
            return f"has {found.size} bytes, not {self.size}"
        return None if found == self else "was altered (its SHA-256 differs)"

    def require(self, found: "Fingerprint | None") -> None:
        """Raises DamagedError for a file that has another one."""
        if damage := self.damage(found):
            raise DamagedError(damage)


def fingerprints(contents: Mapping[str, bytes]) -> dict[str, Fingerprint]:
    """Of each of the files, by their names."""
    return {name: Fingerprint.of(data) for name, data in contents.items()}
