"""manifest.json: what a bank is and which shards are committed; a shard is in the bank once it is in here."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple, get_args

from engine.bank.config import Codec
from engine.bank.fingerprint import Fingerprint
from engine.errors import UserError

MANIFEST = "manifest.json"
CARD = "README.md"
STATUS = ".status.json"
"""What the writer says of its progress; no part of the bank."""
FOLDERS = ("index", "rows", "stats")
"""The only folders in a bank: a folder with nothing but parquet files in it is a table to other tools."""

_PART = re.compile(r"((index|rows|stats)/)?\.(\d{5,}|manifest|README|\.status)\.[0-9a-f]*part\.\w+")


class ShardFiles(NamedTuple):
    """The names of a shard's files."""

    tar: str
    """Images."""
    dali_index: str
    """Where they lie in the tar."""
    rows: str
    """One row an image, rejected ones too."""
    stats: str
    """Counts."""


def shard_name(number: int) -> str:
    """e.g. 00007"""
    return f"{number:05d}"


def shard_files(number: int) -> ShardFiles:
    name = shard_name(number)
    return ShardFiles(f"{name}.tar", f"index/{name}.idx", f"rows/{name}.parquet", f"stats/{name}.json")


def version_1_files(number: int) -> ShardFiles:
    """As banks had them that have a manifest of version 1."""
    name = shard_name(number)
    return ShardFiles(f"{name}.tar", f"{name}.idx", f"{name}.parquet", f"{name}_stats.json")


def shard_number(name: str) -> int | None:
    """Return the number of the shard that a file belongs to, None if it belongs to none."""
    stem = PurePosixPath(name).stem
    number = int(stem) if re.fullmatch(r"[0-9]{5,}", stem) else None
    return number if number is not None and name in shard_files(number) else None


def is_part(name: str) -> bool:
    """Whether a killed writer left the file under its temporary name."""
    return _PART.fullmatch(name) is not None


def is_hidden(name: str) -> bool:
    """Whether the file is no part of a bank: a lock, a status, a temporary name."""
    return PurePosixPath(name).name.startswith(".")


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


OTHER_COMMAND = "one of engine.run and engine.generate made it, and this is the other"
"""The only difference that is not among the settings."""


def require_same_settings(url: str, stored: Header, new: Header) -> None:
    if stored.settings_sha256 != new.settings_sha256:
        recipe, facts = (json.loads(json.dumps(part)) for part in (new.recipe, new.facts))
        difference = first_difference(stored.facts, facts) or first_difference(stored.recipe, recipe)
        raise UserError(
            f"--resume: {url} was made with other settings: {difference or OTHER_COMMAND};"
            " restore that file or setting, or give another bank"
        )
    for name in ("class_names", "image_size", "channels", "codec", "quality"):
        before, after = getattr(stored, name), getattr(new, name)
        if before != after:
            raise UserError(
                f"--resume: {url} was made with another {name} ({before!r} -> {after!r}); give another bank"
            )


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """`key: old value -> new value` of the first setting that differs, None where all are equal."""
    before, after = _flat(old), _flat(new)
    for key in before | after:
        if before.get(key) != after.get(key):
            return f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
    return None


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
