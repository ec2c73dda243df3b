"""Merge several banks into a new one: copy their shards unchanged and renumber them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from engine.bank.fingerprint import DamagedError, Fingerprint
from engine.bank.manifest import Header, Manifest, Origin, ShardEntry, shard_files, shard_name, views_file
from engine.bank.reader import read_manifest
from engine.bank.storage import Storage, open_storage
from engine.bank.tars import TarError, members
from engine.bank.writer import BankWriter
from engine.errors import UserError

MERGED = "merged"
"""The only key in the recipe of a merged bank's header."""
COMMON = ("class_names", "image_size", "channels", "codec")
"""Header fields that must be equal in all merged banks."""


def merged_recipe(recipes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the recipe of a merged bank's header."""
    return {MERGED: by_bank(recipes)}


def by_bank(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the values by bank number, or a single value if all are equal."""
    if all(value == values[0] for value in values):
        return values[0]
    return {f"bank {number}": value for number, value in enumerate(values, 1)}


def recipes_of(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the recipes in the `recipe` of a bank's header, in order: several if the bank was merged."""
    if MERGED not in recipe:
        return [recipe]
    inner = recipe[MERGED]
    recipes = list(inner.values()) if all(name.startswith("bank ") for name in inner) else [inner]
    return [each for merged in recipes for each in recipes_of(merged)]


@dataclass(frozen=True, slots=True)
class Source:
    """A shard to copy."""

    storage: Storage
    number: int
    entry: ShardEntry
    origin: Origin


def merge(urls: Sequence[str], out: str, *, resume: bool) -> Manifest:
    """Copy the shards of the banks at `urls` to the bank at `out`, identical shards only once.

    Args:
        resume: continue an interrupted merge of the same banks.

    Returns:
        The manifest of the new bank.

    Raises:
        UserError: if the banks do not match, or if a shard is damaged; the message names it.
    """
    storages = [open_storage(url) for url in urls]
    manifests = [read_manifest(storage) for storage in storages]
    for url, manifest in zip(urls, manifests, strict=True):
        _require_common(urls[0], manifests[0].header, url, manifest.header)
    sources = list(_distinct(storages, manifests))
    with BankWriter.open(out, _header(manifests, sources), resume=resume) as writer:
        for number, source in enumerate(sources):
            if number not in writer.committed:
                contents = dict(zip(shard_files(number), _contents(source), strict=True))
                writer.commit_files(number, contents, source.entry.rows, source.entry.images, source.origin)
            _copy_views(source, writer, number)
    return read_manifest(open_storage(out))


def _require_common(first: str, expected: Header, url: str, header: Header) -> None:
    for name in COMMON:
        ours, theirs = getattr(expected, name), getattr(header, name)
        if ours != theirs:
            raise UserError(
                f"{url} differs from {first} in {name} ({theirs!r}, not {ours!r});"
                f" merge only banks with the same {name}"
            )


def _distinct(storages: Sequence[Storage], manifests: Sequence[Manifest]) -> Iterator[Source]:
    """Yield each shard once. Shards are identified by their tars; shards without images, by their rows."""
    seen = set()
    for storage, manifest in zip(storages, manifests, strict=True):
        header = manifest.header
        for number, entry in manifest.shards.items():
            identity = entry.files[entry.names.tar if entry.images else entry.names.rows].sha256
            if identity not in seen:
                origin = entry.origin or Origin(
                    settings_sha256=header.settings_sha256, seed=header.recipe.get("seed"), number=number
                )
                yield Source(storage, number, entry, origin)
            seen.add(identity)


def _header(manifests: Sequence[Manifest], sources: Sequence[Source]) -> Header:
    """Return the header of the merged bank. Its settings hash covers the source files in order."""
    first = manifests[0].header
    files = [[file.sha256 for file in source.entry.files.values()] for source in sources]
    return Header(
        recipe=merged_recipe([manifest.header.recipe for manifest in manifests]),
        settings_sha256=hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        class_names=first.class_names,
        image_size=first.image_size,
        channels=first.channels,
        codec=first.codec,
        quality=first.quality,
        facts=by_bank([manifest.header.facts for manifest in manifests]),
    )


def _contents(source: Source) -> list[bytes]:
    """Return the files of a shard, checked against the manifest."""
    contents = []
    for name, expected in source.entry.files.items():
        try:
            data = source.storage.read(name)
            expected.require(Fingerprint.of(data))
        except (FileNotFoundError, DamagedError) as error:
            what = str(error) if isinstance(error, DamagedError) else "is missing"
            raise _bad_shard(source, f"{name} {what}") from None
        contents.append(data)
    try:
        members(contents[0])
    except TarError as error:
        raise _bad_shard(source, str(error)) from None
    return contents


def _copy_views(source: Source, writer: BankWriter, number: int) -> None:
    """Copy the teacher's stored outputs, if there are any; bad ones are made again when they are needed."""
    with suppress(FileNotFoundError):
        writer.write_views(number, source.storage.read(views_file(source.number)))


def _bad_shard(source: Source, what: str) -> UserError:
    return UserError(
        f"{source.storage.url}: shard {shard_name(source.number)}: {what};"
        " restore the file from a copy; engine.generate --resume repairs a bank that it made"
    )
