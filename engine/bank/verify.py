"""Check a bank completely: the hash of each file, the consistency of the files, and every image."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from engine.bank.card import EARLIER_HEADINGS, render_card, total_stats
from engine.bank.codecs import EXTENSIONS, THREADS, decoder
from engine.bank.fingerprint import Fingerprint
from engine.bank.manifest import (
    CARD,
    MANIFEST,
    VERSION,
    Header,
    Manifest,
    ShardEntry,
    is_hidden,
    views_file,
)
from engine.bank.reader import read_manifest
from engine.bank.shard import dali_index, descriptions, stems
from engine.bank.stats import Stats
from engine.bank.storage import Storage, open_storage
from engine.bank.table import Table, from_parquet
from engine.bank.tars import Member, TarError, members
from engine.bank.views import ViewsError, parse


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with one file of a bank."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file} {self.what}"


def shard_problems(storage: Storage, header: Header, entry: ShardEntry) -> list[Problem]:
    """Return all problems of a shard."""
    contents = {name: data for name in entry.names if (data := _read(storage, name)) is not None}
    found = []
    for name, expected in entry.files.items():
        damage = expected.damage(Fingerprint.of(contents[name]) if name in contents else None)
        if damage:
            found.append(Problem(name, damage))
    return found or list(_inconsistencies(header, entry, contents))


def _read(storage: Storage, name: str) -> bytes | None:
    try:
        return storage.read(name)
    except FileNotFoundError:
        return None


def _inconsistencies(header: Header, entry: ShardEntry, contents: dict[str, bytes]) -> Iterator[Problem]:
    """Derive the other files from the rows and compare."""
    (tar_name, tar), (index_name, index), (rows_name, parquet), (stats_name, stats) = contents.items()
    try:
        table = from_parquet(parquet, len(header.class_names))
    except ValueError as error:
        yield Problem(rows_name, str(error))
        return
    try:
        tar_members = members(tar)
    except TarError as error:
        yield Problem(tar_name, str(error))
        return
    counts = (len(table.rows), int(table.rows.kept.sum()), len(tar_members))
    if counts != (entry.rows, entry.images, 2 * entry.images):
        yield Problem(rows_name, f"does not match the manifest and the tar: {counts} rows, images and files")
        return
    if index != dali_index(tar_members):
        yield Problem(index_name, "does not match the tar")
    if stats != Stats.of(table.rows, len(header.class_names)).to_json():
        yield Problem(stats_name, "does not match the rows")
    yield from (Problem(tar_name, what) for what in _sample_problems(header, table, tar, tar_members))


def _sample_problems(header: Header, table: Table, tar: bytes, tar_members: list[Member]) -> Iterator[str]:
    """Yield the problems of the samples in a tar. It must have as many samples as the table."""
    kept = table.rows.kept
    spans = np.stack([table.offsets[kept], table.sizes[kept]], axis=1).tolist()
    described = descriptions(table.rows, header.class_names)
    decode = decoder(header.codec, header.image_size, header.channels)
    extension = EXTENSIONS[header.codec]
    pairs = zip(stems(table.rows), tar_members[::2], tar_members[1::2], spans, described, strict=True)
    for stem, image, description, span, expected in pairs:
        if [image.name, description.name] != [f"{stem}.{extension}", f"{stem}.json"]:
            yield f"has {image.name}, but its parquet file has {stem}"
        elif [image.offset, image.size] != span:
            yield f"has {image.name} at another offset or with another size than its parquet file says"
        if tar[description.offset : description.offset + description.size] != expected:
            yield f"has a {description.name} that differs from its parquet file"
        try:
            decode(tar[image.offset : image.offset + image.size])
        except ValueError as error:
            yield f"has {image.name}, which {error}"


def verify(url: str) -> list[Problem]:
    """Return all problems of the bank at `url`. Raises UserError if its manifest is missing or damaged."""
    storage = open_storage(url)
    manifest = read_manifest(storage)

    def problems(entry: ShardEntry) -> list[Problem]:
        return shard_problems(storage, manifest.header, entry)

    with ThreadPoolExecutor(THREADS) as pool:
        found = [problem for shard in pool.map(problems, manifest.shards.values()) for problem in shard]
    return (
        found
        + list(_views_problems(storage, manifest))
        + list(_unknown_files(storage, manifest))
        + list(_card_problems(storage, manifest, sound=not found))
    )


def _views_problems(storage: Storage, manifest: Manifest) -> Iterator[Problem]:
    """Check the teacher's stored outputs. A shard needs none; training makes bad ones again."""
    for number, entry in manifest.shards.items():
        name = views_file(number)
        if (data := _read(storage, name)) is None:
            continue
        try:
            found = parse(np.frombuffer(data, np.uint8))
        except ViewsError as error:
            yield Problem(name, str(error))
            continue
        if found.owner.tar != entry.files[entry.names.tar].sha256:
            yield Problem(name, "is of another tar")
        elif len(found.outputs.logits) != entry.images:
            yield Problem(name, f"has {len(found.outputs.logits)} images, not {entry.images}")


def _unknown_files(storage: Storage, manifest: Manifest) -> Iterator[Problem]:
    known = {MANIFEST, CARD, *map(views_file, manifest.shards)}.union(
        *(entry.names for entry in manifest.shards.values())
    )
    for name in storage.names():
        if name not in known and not is_hidden(name):
            yield Problem(
                name, "belongs to no committed shard; --resume removes the files of a killed writer"
            )


def _card_problems(storage: Storage, manifest: Manifest, *, sound: bool) -> Iterator[Problem]:
    """Compare the card with the shards. A bank has no card while it is being written.

    Cards written by earlier versions are not checked, as their wording differs.
    """
    if sound and manifest.version == VERSION and CARD in storage.names():
        expected, card = render_card(manifest, total_stats(storage, manifest)), storage.read(CARD)
        if card != expected and not any(heading in card for heading in EARLIER_HEADINGS):
            yield Problem(CARD, "does not match the shards; --resume writes a new one")
