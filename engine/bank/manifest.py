"""manifest.json: what a bank is and which shards are committed; a shard is in the bank once it is in here."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from engine.bank.fingerprint import Fingerprint
from engine.bank.names import MANIFEST, ShardFiles, shard_files, shard_name, version_1_files
from engine.config.storage import Codec
from engine.errors import UserError

VERSION = 2
"""Of what is written. Version 1, which is still read: files without folders, three channels in all images."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What all shards of a bank have in common."""

    recipe: dict[str, Any]
    """The resolved recipe that made the bank."""
    settings_sha256: str
    """Over those settings that decide the shards."""
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    """H, W"""
    channels: int
    """Of the stored images: 3 (RGB), or 1 (grey), which readers give as three equal ones."""
    codec: Codec
    quality: int
    facts: dict[str, Any]
    """Of the teacher, the priors and their licences: for the card."""

    @property
    def wanted_classes(self) -> list[bool]:
        """[C]: whether the recipe asks for images of the class; all of them in a merged bank."""
        synthesize = self.recipe.get("synthesize")
        weights = (synthesize.get("class_weights") if isinstance(synthesize, Mapping) else None) or {}
        return [weights.get(name, 1.0) > 0 for name in self.class_names]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a shard of a merged bank was made."""

    settings_sha256: str
    seed: int | None
    number: int


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A committed shard."""

    files: Mapping[str, Fingerprint]
    rows: int
    """All images, rejected ones too."""
    images: int
    """The kept ones."""
    origin: Origin | None = None

    @property
    def names(self) -> ShardFiles:
        return ShardFiles(*self.files)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Immutable; what changes it makes another."""

    header: Header
    shards: Mapping[int, ShardEntry] = field(default_factory=dict)
    """By their numbers, ascending."""
    writer: str | None = None
    """Who writes to the bank, where no lock can say so."""
    version: int = VERSION
    """As it was read; only VERSION can be written."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", dict(sorted(self.shards.items())))

    @property
    def images(self) -> int:
        """The kept images of all shards."""
        return sum(entry.images for entry in self.shards.values())

    def to_json(self) -> bytes:
        """One line a shard; `sha256` is over all the rest. Raises ValueError for an earlier version."""
        if self.version != VERSION:
            raise ValueError(f"a manifest of version {self.version} is only read")
        shards = {shard_name(number): _fields(entry) for number, entry in self.shards.items()}
        document = {
            "version": VERSION,
            "writer": self.writer,
            "header": asdict(self.header),
            "shards": shards,
        }
        lines = [f'"{key}": {json.dumps(value)}' for key, value in document.items() if key != "shards"]
        entries = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in shards.items()]
        lines += ['"shards": {\n' + ",\n".join(entries) + "\n}", f'"sha256": "{_digest(document)}"']
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    @classmethod
    def from_json(cls, data: bytes, bank: str) -> "Manifest":
        """Raises UserError that names the manifest of `bank`."""
        try:
            document = json.loads(data)
            digest = document.pop("sha256")
            version = document["version"]
            if version not in (1, VERSION):
                raise UserError(
                    f"{bank}/{MANIFEST} is of version {version}; this engine reads versions 1 to {VERSION}"
                )
            if digest != _digest(document):
                raise ValueError("its SHA-256 differs")
            if version == 1:
                document["header"]["channels"] = 3
            names = version_1_files if version == 1 else shard_files
            shards = ((int(name), fields) for name, fields in document["shards"].items())
            return cls(
                header=_header(document["header"]),
                shards={number: _entry(number, names(number), fields) for number, fields in shards},
                writer=document["writer"],
                version=version,
            )
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{bank}/{MANIFEST} is damaged ({error});"
                " restore it from a copy, or make the bank anew elsewhere"
            ) from None


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _fields(entry: ShardEntry) -> dict[str, Any]:
    fields = {
        "rows": entry.rows,
        "images": entry.images,
        "files": {name: [it.size, it.sha256] for name, it in entry.files.items()},
    }
    return fields | ({"origin": asdict(entry.origin)} if entry.origin else {})


def _header(fields: dict[str, Any]) -> Header:
    names, size = tuple(fields.pop("class_names")), tuple(fields.pop("image_size"))
    header = Header(class_names=names, image_size=size, **fields)
    sides = len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    channels = type(header.channels) is int and header.channels in (1, 3)
    texts = all(type(name) is str for name in names)
    if not (sides and channels and texts and header.codec in get_args(Codec)):
        raise ValueError("its header is not a bank's")
    return header


def _entry(number: int, names: ShardFiles, fields: dict[str, Any]) -> ShardEntry:
    files = {file: Fingerprint(*values) for file, values in fields.pop("files").items()}
    if tuple(files) != names or not all(map(_valid, files.values())):
        raise ValueError(f"shard {shard_name(number)} has other files than a shard's")
    origin = fields.pop("origin", None)
    return ShardEntry(files=files, origin=origin and Origin(**origin), **fields)


def _valid(one: Fingerprint) -> bool:
    return type(one.size) is int and one.size >= 0 and bool(re.fullmatch(r"[0-9a-f]{64}", one.sha256))
