"""Read the committed shards of a bank; remote files are first copied to this machine."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.bank.codecs import Images, decoder
from engine.bank.fingerprint import DamagedError
from engine.bank.manifest import MANIFEST, Header, Manifest, ShardEntry, shard_name, views_file
from engine.bank.rows import Int, Rows, Spans
from engine.bank.storage import Storage, open_storage
from engine.bank.table import Table, from_parquet
from engine.bank.tars import TarError, walk
from engine.bank.views import ViewsError, ViewsFile, read, write_views
from engine.errors import UserError


class BankReader:
    """A reader of the shards that the manifest listed when it was last read."""

    def __init__(self, storage: Storage, manifest: Manifest, *, verify: bool, cache: Path) -> None:
        self._storage = storage
        self._manifest = manifest
        self._verify = verify
        self._cache = cache
        self._verified: set[tuple[str, str]] = set()

    @classmethod
    def open(cls, url: str, *, verify: bool = True, cache: Path | None = None) -> "BankReader":
        """Open a bank.

        Args:
            verify: check the size and SHA-256 of each file, and the structure of each tar, on first use.
            cache: folder for copies of remote files (default: `banks` in $ENGINE_CACHE or else in
                ~/.cache/dda-engine).

        Raises:
            UserError: if there is no bank at `url`, or its manifest is damaged.
        """
        storage = open_storage(url)
        default = Path(os.environ.get("ENGINE_CACHE") or "~/.cache/dda-engine").expanduser() / "banks"
        return cls(storage, read_manifest(storage), verify=verify, cache=cache or default)

    @property
    def header(self) -> Header:
        return self._manifest.header

    @property
    def shards(self) -> Mapping[int, ShardEntry]:
        """The shards by number, ascending."""
        return self._manifest.shards

    @property
    def numbers(self) -> list[int]:
        """The shard numbers, ascending."""
        return list(self._manifest.shards)

    @property
    def images_sha256(self) -> str:
        """A hash of the images alone: equal for banks with the same tars and image size."""
        tars = [entry.files[entry.names.tar].sha256 for entry in self._manifest.shards.values()]
        return hashlib.sha256(json.dumps([self.header.image_size, tars]).encode()).hexdigest()

    def only(self, numbers: Iterable[int]) -> "BankReader":
        """Return a reader of only these shards."""
        shards = {number: self._manifest.shards[number] for number in numbers}
        manifest = replace(self._manifest, shards=shards)
        return BankReader(self._storage, manifest, verify=self._verify, cache=self._cache)

    def refresh(self) -> None:
        """Read the manifest again, to include newly committed shards."""
        self._manifest = read_manifest(self._storage)

    def rows(self, number: int) -> Rows:
        """Return all rows of a shard, including rejected ones."""
        return self._table(number).rows

    def spans(self, number: int) -> Spans:
        """Return the byte spans of the kept images of a shard."""
        table = self._table(number)
        rows, kept = table.rows, table.rows.kept
        return Spans(
            path=self._tar(number, table),
            offsets=table.offsets[kept],
            sizes=table.sizes[kept].astype(np.int64),
            keys=rows.keys[kept],
            labels=rows.labels[kept],
            agrees=(rows.teacher_top1 == rows.labels)[kept],
        )

    def images(self, number: int, positions: Sequence[int] | Int) -> Images:
        """Return images of a shard, uint8 [N, H, W, 3], even if they are grey.

        `positions` count the kept images of the shard from 0.
        """
        spans = self.spans(number)
        decode = decoder(self.header.codec, self.header.image_size, self.header.channels)
        images = np.empty((len(positions), *self.header.image_size, 3), np.uint8)
        with spans.path.open("rb") as tar:
            for image, position in zip(images, positions, strict=True):
                data = os.pread(tar.fileno(), int(spans.sizes[position]), int(spans.offsets[position]))
                try:
                    image[:] = decode(data)
                except ValueError as error:
                    raise self._bad(number, f"image {spans.keys[position]} {error}") from None
        return images

    def tar_sha256(self, number: int) -> str:
        """Return the SHA-256 of a shard's tar."""
        return _tar_sha256(self.shards[number])

    def views(self, number: int) -> ViewsFile | None:
        """Return the teacher's outputs on stored views of a shard, or None if it has none.

        Raises ViewsError if they are damaged or belong to other images.
        """
        path = self._storage.unlisted(views_file(number), self._cache)
        if path is None:
            return None
        views = read(path)
        fits = len(views.outputs.logits) == self.shards[number].images
        if views.owner.tar != self.tar_sha256(number) or not fits:
            raise ViewsError("belongs to other images")
        return views

    def view_seed(self, number: int) -> int:
        """Return the seed of a shard's views: of the generation that made the shard."""
        origin = self.shards[number].origin
        seed = self.header.recipe.get("seed") if origin is None else origin.seed
        return seed or 0

    def write_views(self, number: int, data: bytes) -> None:
        """Write the file of a shard's views, for all readers. Raises UserError if that is impossible."""
        write_views(self._storage, number, data)

    def _table(self, number: int) -> Table:
        path = self._file(number, self.shards[number].names.rows)
        try:
            return from_parquet(path.read_bytes(), len(self.header.class_names))
        except ValueError as error:
            raise self._bad(number, f"{path.name} {error}") from None

    def _tar(self, number: int, table: Table) -> Path:
        name = self.shards[number].names.tar
        first = not self._is_verified(number, name)
        path = self._file(number, name)
        if first and self._verify:
            try:
                images = walk(path)[::2]
            except TarError as error:
                raise self._bad(number, f"{name}: {error}") from None
            kept = zip(table.offsets[table.rows.kept], table.sizes[table.rows.kept], strict=True)
            if [(image.offset, image.size) for image in images] != list(kept):
                raise self._bad(number, f"{name} does not contain the images that its parquet file lists")
        return path

    def _file(self, number: int, name: str) -> Path:
        """Return the local path of a file, which is hashed on first use."""
        expected = self._manifest.shards[number].files[name]
        verify = self._verify and not self._is_verified(number, name)
        try:
            path = self._storage.local(name, expected, self._cache, verify=verify)
        except DamagedError as error:
            raise self._bad(number, f"{name} {error}") from None
        self._verified.add((name, expected.sha256))
        return path

    def _is_verified(self, number: int, name: str) -> bool:
        return (name, self._manifest.shards[number].files[name].sha256) in self._verified

    def _bad(self, number: int, what: str) -> UserError:
        url = self._storage.url
        return UserError(
            f"{url}: shard {shard_name(number)}: {what};"
            f" python -m engine.bank verify {url} lists every bad file;"
            " restore the file from a copy; engine.generate --resume repairs a bank that it made"
        )


def read_manifest(storage: Storage) -> Manifest:
    """Return the manifest of a bank. Raises UserError if it is missing or damaged."""
    try:
        return Manifest.from_json(storage.read(MANIFEST), storage.url)
    except FileNotFoundError:
        raise UserError(
            f"{storage.url} has no {MANIFEST}, so it is not a bank; give the folder of a bank"
        ) from None


Snapshot = dict[int, str]
"""SHA-256 of each shard's tar, by its number."""


def snapshot(bank: BankReader, numbers: Iterable[int] | None = None) -> Snapshot:
    """Return the snapshot of the numbered shards (default: all)."""
    shards = bank.shards
    chosen = shards if numbers is None else numbers
    return {number: _tar_sha256(shards[number]) for number in chosen}


def require_snapshot(bank: BankReader, url: str, taken: Snapshot) -> None:
    """Raise UserError if a shard of the snapshot is missing or has changed; name the first one."""
    shards = bank.shards
    for number, sha256 in taken.items():
        found = _tar_sha256(shards[number]) if number in shards else None
        if found != sha256:
            what = "is missing" if found is None else "has changed"
            raise UserError(
                f"{url}: shard {shard_name(number)}, which this run was trained on, {what};"
                " restore it, or start again in another --out"
            )


def _tar_sha256(entry: ShardEntry) -> str:
    return entry.files[entry.names.tar].sha256
