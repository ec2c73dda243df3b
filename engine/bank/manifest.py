"""The manifest: what a bank is and which shards are committed.

A shard is part of the bank once manifest.json lists it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple, get_args

from engine.bank.fingerprint import Fingerprint
from engine.config.recipe import flatten, of_earlier_version
from engine.config.storage import Codec
from engine.errors import UserError

VERSION = 2
"""Version of new manifests. Version 1, which can still be read, has no subfolders and always 3 channels."""
MANIFEST = "manifest.json"
CARD = "README.md"
STATUS = ".status.json"
"""Progress report of the writer; not part of the bank."""
FOLDERS = ("index", "rows", "stats", "views")
"""The only subfolders. `rows` contains nothing but parquet files, so other tools can read it as a table."""
OTHER_COMMAND = "engine.run and engine.generate cannot continue each other's banks"
"""The only cause of a different settings hash that is not a setting."""

_PART = re.compile(r"((index|rows|stats|views)/)?\.(\d{5,}|manifest|README|\.status)\.[0-9a-f]*part\.\w+")


class ShardFiles(NamedTuple):
    """The file names of a shard."""

    tar: str
    """Images."""
    dali_index: str
    """Offset and size of each image in the tar."""
    rows: str
    """One row per image, including rejected ones."""
    stats: str
    """Counts."""


def shard_name(number: int) -> str:
    """Return the shard number with at least five digits, e.g. 00007."""
    return f"{number:05d}"


def shard_files(number: int) -> ShardFiles:
    """Return the file names of a shard."""
    name = shard_name(number)
    return ShardFiles(f"{name}.tar", f"index/{name}.idx", f"rows/{name}.parquet", f"stats/{name}.json")


def views_file(number: int) -> str:
    """Return the name of the file with the teacher's outputs on views of the shard; it need not exist."""
    return f"views/{shard_name(number)}.safetensors"


def is_of_views(name: str) -> bool:
    """Return whether the file is one of views, or a temporary one."""
    return name.startswith("views/")


def version_1_files(number: int) -> ShardFiles:
    """Return the file names of a shard in a bank whose manifest has version 1."""
    name = shard_name(number)
    return ShardFiles(f"{name}.tar", f"{name}.idx", f"{name}.parquet", f"{name}_stats.json")


def shard_number(name: str) -> int | None:
    """Return the number of the shard that the file belongs to, or None."""
    stem = PurePosixPath(name).stem
    number = int(stem) if re.fullmatch(r"[0-9]{5,}", stem) else None
    return number if number is not None and name in (*shard_files(number), views_file(number)) else None


def is_part(name: str) -> bool:
    """Return whether this is a temporary file, such as a killed writer leaves behind."""
    return _PART.fullmatch(name) is not None


def is_hidden(name: str) -> bool:
    """Return whether the file is not part of the bank: a lock, a status or a temporary file."""
    return PurePosixPath(name).name.startswith(".")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What all shards of a bank share."""

    recipe: dict[str, Any]
    """Resolved recipe that made the bank."""
    settings_sha256: str
    """Hash of the settings that determine the shards."""
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    """(H, W)."""
    channels: int
    """Channels of the stored images: 3 (RGB) or 1 (grey), which readers repeat three times."""
    codec: Codec
    quality: int
    facts: dict[str, Any]
    """Names, weights and licences of the teacher and the priors, for the card."""

    @property
    def wanted_classes(self) -> list[bool]:
        """Return [C] flags: whether the recipe asks for images of the class; always true in a merged bank."""
        synthesize = self.recipe.get("synthesize")
        weights = (synthesize.get("class_weights") if isinstance(synthesize, Mapping) else None) or {}
        return [weights.get(name, 1.0) > 0 for name in self.class_names]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The bank and number that a shard of a merged bank was copied from."""

    settings_sha256: str
    seed: int | None
    number: int


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A committed shard."""

    files: Mapping[str, Fingerprint]
    rows: int
    """Number of images, including rejected ones."""
    images: int
    """Number of kept images."""
    origin: Origin | None = None

    @property
    def names(self) -> ShardFiles:
        return ShardFiles(*self.files)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An immutable manifest; change it with `dataclasses.replace`."""

    header: Header
    shards: Mapping[int, ShardEntry] = field(default_factory=dict)
    """By shard number, ascending."""
    writer: str | None = None
    """Token of the current writer, if the storage has no locks."""
    version: int = VERSION
    """Version that was read; only VERSION can be written."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", dict(sorted(self.shards.items())))

    @property
    def images(self) -> int:
        """Number of kept images in all shards."""
        return sum(entry.images for entry in self.shards.values())

    def to_json(self) -> bytes:
        """Return the document, one line per shard; its `sha256` covers all other fields.

        Raises:
            ValueError: if the manifest has an earlier version.
        """
        if self.version != VERSION:
            raise ValueError(f"a manifest of version {self.version} can only be read")
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
        """Parse a manifest.

        Raises:
            UserError: if it is damaged or has an unknown version; the message names the manifest of `bank`.
        """
        try:
            document = json.loads(data)
            digest = document.pop("sha256")
            version = document["version"]
            if version not in (1, VERSION):
                raise UserError(
                    f"{bank}/{MANIFEST} has version {version}, but this engine reads versions 1 to {VERSION};"
                    " update the engine"
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
                " restore it from a copy, or make a new bank elsewhere"
            ) from None


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _fields(entry: ShardEntry) -> dict[str, Any]:
    fields = {
        "rows": entry.rows,
        "images": entry.images,
        "files": {name: [file.size, file.sha256] for name, file in entry.files.items()},
    }
    return fields | ({"origin": asdict(entry.origin)} if entry.origin else {})


def _header(fields: dict[str, Any]) -> Header:
    names, size = tuple(fields.pop("class_names")), tuple(fields.pop("image_size"))
    recipe = of_earlier_version(fields.pop("recipe"))
    header = Header(recipe=recipe, class_names=names, image_size=size, **fields)
    sides = len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    channels = type(header.channels) is int and header.channels in (1, 3)
    texts = all(type(name) is str for name in names)
    if not (sides and channels and texts and header.codec in get_args(Codec)):
        raise ValueError("its header is invalid")
    return header


def _entry(number: int, names: ShardFiles, fields: dict[str, Any]) -> ShardEntry:
    files = {file: Fingerprint(*values) for file, values in fields.pop("files").items()}
    if tuple(files) != names or not all(map(_is_valid, files.values())):
        raise ValueError(f"shard {shard_name(number)} has invalid file entries")
    origin = fields.pop("origin", None)
    return ShardEntry(files=files, origin=origin and Origin(**origin), **fields)


def _is_valid(file: Fingerprint) -> bool:
    return type(file.size) is int and file.size >= 0 and bool(re.fullmatch(r"[0-9a-f]{64}", file.sha256))


def require_same_settings(url: str, stored: Header, new: Header) -> None:
    """Raise UserError if the bank at `url` has other settings; the message names the first difference."""
    if stored.settings_sha256 != new.settings_sha256:
        recipe, facts = (json.loads(json.dumps(part)) for part in (new.recipe, new.facts))
        difference = first_difference(stored.facts, facts) or first_difference(stored.recipe, recipe)
        raise UserError(
            f"--resume: {url} was made with other settings: {difference or OTHER_COMMAND};"
            " restore that file or setting, or choose another bank"
        )
    for name in ("class_names", "image_size", "channels", "codec", "quality"):
        before, after = getattr(stored, name), getattr(new, name)
        if before != after:
            raise UserError(
                f"--resume: {url} was made with another {name} ({before!r} -> {after!r}); choose another bank"
            )


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Return `key: old value -> new value` for the first setting that differs, or None if all are equal."""
    before, after = flatten(old), flatten(new)
    for key in before | after:
        if before.get(key) != after.get(key):
            return f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
    return None
