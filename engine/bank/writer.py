"""Write a bank shard by shard. A shard is committed as a whole or not at all, however the process ends."""

import logging
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace

from engine.bank.card import render_card, total_stats
from engine.bank.codecs import Images
from engine.bank.fingerprint import Fingerprint, fingerprints
from engine.bank.manifest import (
    CARD,
    MANIFEST,
    VERSION,
    Header,
    Manifest,
    Origin,
    ShardEntry,
    is_hidden,
    is_of_views,
    is_part,
    require_same_settings,
    shard_files,
    shard_name,
    shard_number,
)
from engine.bank.rows import Rows
from engine.bank.shard import shard_contents
from engine.bank.storage import Storage, open_storage
from engine.bank.table import from_parquet
from engine.bank.views import write_views
from engine.errors import UserError

logger = logging.getLogger(__name__)


class ManifestFile:
    """A bank's manifest file. It remembers the bytes last read or written, to detect other writers."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: bytes | None = None

    def read(self) -> Manifest | None:
        """Return the manifest, or None if there is none. Raises UserError if it is damaged."""
        self._known = self._found()
        return None if self._known is None else Manifest.from_json(self._known, self._storage.url)

    def replace(self, manifest: Manifest) -> None:
        """Write the manifest, which commits its shards. Raises UserError if another process changed it."""
        self.require_unchanged()
        data = manifest.to_json()
        if data != self._known:
            self._storage.write(MANIFEST, data)
        self._known = data

    def require_unchanged(self) -> None:
        """Raise UserError if another process has changed the manifest."""
        if self._found() != self._known:
            raise UserError(
                f"{self._storage.url} was taken over by another writer; nothing committed is lost;"
                " continue it with --resume in a single process"
            )

    def _found(self) -> bytes | None:
        try:
            return self._storage.read(MANIFEST)
        except FileNotFoundError:
            return None


class BankWriter:
    """The only writer of a bank.

    Local banks are protected by a file lock. Object stores have none: the last process to open a bank owns
    it, as recorded in the manifest, and earlier writers fail on their next commit.
    """

    def __init__(self, storage: Storage, header: Header, claim: ExitStack) -> None:
        self._storage = storage
        self._manifest = Manifest(header=header, writer=storage.token)
        self._manifest_file = ManifestFile(storage)
        self._claim = claim

    @classmethod
    def open(
        cls,
        url: str,
        header: Header,
        *,
        resume: bool,
        irreplaceable: Collection[int] = (),
    ) -> "BankWriter":
        """Start the bank at `url` or, with `resume`, continue it.

        Damaged shards are logged and removed from the bank, so that they can be made again.

        Args:
            irreplaceable: numbers of the shards that must be present and sound.

        Raises:
            UserError: if an irreplaceable shard is damaged or missing; if the folder is in use, is not empty
                (without `resume`) or is not a bank; or if the bank is of another recipe or an earlier
                version. The bank is then unchanged.
        """
        storage = open_storage(url)
        with ExitStack() as claim:
            if not claim.enter_context(storage.lock()):
                raise UserError(
                    f"{url} is being written by another process; wait for it or choose another bank"
                )
            writer = cls(storage, header, claim)
            writer._start(resume, irreplaceable)
            writer._claim = claim.pop_all()
        return writer

    def __enter__(self) -> "BankWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._claim:
            if kind is None:
                self.close()

    @property
    def committed(self) -> Mapping[int, ShardEntry]:
        """The committed shards by number, ascending."""
        return self._manifest.shards

    def rows(self, number: int) -> Rows:
        """Return the rows of a committed shard. Raises UserError if their file is damaged."""
        name = self.committed[number].names.rows
        data = self._storage.read(name)
        damage = self.committed[number].files[name].damage(Fingerprint.of(data))
        if damage:
            raise UserError(f"{self._storage.url}/{name} {damage}; regenerate the shard with --resume")
        return from_parquet(data, len(self._manifest.header.class_names)).rows

    def commit(self, number: int, rows: Rows, images: Images) -> ShardEntry:
        """Add a shard to the bank; do nothing if the same shard is already committed.

        Args:
            images: the kept images, uint8 [K, H, W, 3], in the order of the rows.

        Raises:
            UserError: if a different shard has this number, or if another process has taken over the bank.
        """
        contents = shard_contents(number, rows, images, self._manifest.header)
        return self.commit_files(number, contents, len(rows), len(images), origin=None)

    def commit_files(
        self, number: int, contents: Mapping[str, bytes], rows: int, images: int, origin: Origin | None
    ) -> ShardEntry:
        """Commit a shard like `commit`, from the contents of its files by their names in this bank."""
        if number < 0 or tuple(contents) != shard_files(number):
            raise ValueError(f"{', '.join(contents)} are not the files of shard {number}")
        entry = ShardEntry(files=fingerprints(contents), rows=rows, images=images, origin=origin)
        if number in self.committed:
            self._require_same(number, entry)
            return entry
        self._manifest_file.require_unchanged()
        for name, data in contents.items():
            self._storage.write(name, data)
        self._add({number: entry})
        return entry

    def commit_entries(self, entries: Mapping[int, ShardEntry]) -> None:
        """Commit shards whose files other processes have written with `write_shard`, all in one manifest.

        Raises:
            UserError: as for `commit`, or if a file is missing because the folder is not shared.
        """
        new = {number: entry for number, entry in entries.items() if number not in self.committed}
        for number in entries.keys() - new.keys():
            self._require_same(number, entries[number])
        for entry in new.values():
            self._require_files(entry)
        if new:
            self._add(new)

    def write_views(self, number: int, data: bytes) -> None:
        """Write the file of a committed shard's views. Raises UserError if that is impossible."""
        write_views(self._storage, number, data)

    def keep_below(self, number: int) -> None:
        """Remove the shards from `number` on, so that they can be made again."""
        kept = {old: entry for old, entry in self.committed.items() if old < number}
        if len(kept) < len(self.committed):
            self._replace(replace(self._manifest, shards=kept))
            self._remove_leftovers()

    def close(self) -> None:
        """Write the card, remove the partial files of killed workers and release the bank."""
        with self._claim:
            self._manifest_file.require_unchanged()
            for name in filter(is_part, self._storage.names()):
                if not is_of_views(name):  # a training may be writing it
                    self._storage.remove(name)
            self._storage.write(CARD, render_card(self._manifest, total_stats(self._storage, self._manifest)))
            if self._manifest.writer is not None:
                self._replace(replace(self._manifest, writer=None))

    def _start(self, resume: bool, irreplaceable: Collection[int]) -> None:
        url = self._storage.url
        used = _used(self._storage)
        stored = self._manifest_file.read() if resume or not used else None
        if (used or stored) and not resume:
            raise _not_empty(url)
        if used and stored is None:
            raise UserError(f"{url} has no {MANIFEST}, so it is not a bank to continue; choose another bank")
        manifest = self._manifest if stored is None else stored
        _require_current(url, manifest)
        require_same_settings(url, manifest.header, self._manifest.header)
        self._replace(self._without_bad_shards(manifest, irreplaceable))
        self._remove_leftovers()

    def _without_bad_shards(self, manifest: Manifest, irreplaceable: Collection[int]) -> Manifest:
        url = self._storage.url
        damages = {number: self._damage(entry) for number, entry in manifest.shards.items()}
        for number in irreplaceable:
            if damage := damages.get(number, f"is not in {MANIFEST}"):
                raise UserError(
                    f"{url}: shard {shard_name(number)}: {damage}; a student was trained on this shard, so it"
                    " cannot be replaced: restore the file from a copy, then repeat the command"
                )
        for number, damage in damages.items():
            if damage:
                logger.error("%s: shard %s will be made again: %s", url, shard_name(number), damage)
        sound = {number: entry for number, entry in manifest.shards.items() if not damages[number]}
        return replace(manifest, shards=sound, writer=self._storage.token)

    def _add(self, entries: Mapping[int, ShardEntry]) -> None:
        self._replace(replace(self._manifest, shards={**self.committed, **entries}))
        for number, entry in entries.items():
            logger.debug(
                "shard %s committed: %d of %d images kept", shard_name(number), entry.images, entry.rows
            )

    def _require_files(self, entry: ShardEntry) -> None:
        for name, expected in entry.files.items():
            if self._storage.size(name) != expected.size:
                raise UserError(
                    f"{self._storage.url}/{name} is missing or differs from what its worker wrote;"
                    " give all machines one shared folder, or a URL (s3://...)"
                )

    def _replace(self, manifest: Manifest) -> None:
        self._manifest_file.replace(manifest)
        self._manifest = manifest

    def _damage(self, entry: ShardEntry) -> str | None:
        for name, expected in entry.files.items():
            damage = expected.damage(self._storage.fingerprint(name))
            if damage:
                return f"{name} {damage}"
        return None

    def _remove_leftovers(self) -> None:
        """Remove the files of killed writers, and the card, which is out of date."""
        for name in self._storage.names():
            number = shard_number(name)
            if name == CARD or is_part(name) or (number is not None and number not in self.committed):
                self._storage.remove(name)

    def _require_same(self, number: int, entry: ShardEntry) -> None:
        if entry != self.committed[number]:
            raise UserError(
                f"{self._storage.url}: shard {shard_name(number)} differs from the committed one;"
                " continue the bank on the same machine with the same settings, or choose another bank"
            )


def write_shard(url: str, number: int, rows: Rows, images: Images, header: Header) -> ShardEntry:
    """Write the files of a shard and return its entry, which `BankWriter.commit_entries` then commits.

    Any number of processes may call this while one writer has the bank open; `rows` and `images` are as for
    `commit`.
    """
    storage = open_storage(url)
    contents = shard_contents(number, rows, images, header)
    for name, data in contents.items():
        storage.write(name, data)
    return ShardEntry(files=fingerprints(contents), rows=len(rows), images=len(images))


def require_new(url: str) -> None:
    """Raise UserError if there is anything at `url`."""
    storage = open_storage(url)
    if _used(storage):
        raise _not_empty(storage.url)


def _used(storage: Storage) -> bool:
    return any(not is_hidden(name) for name in storage.names())


def _require_current(url: str, manifest: Manifest) -> None:
    """Raise UserError if the bank has an earlier version: new shards would differ from its own."""
    if manifest.version != VERSION:
        raise UserError(
            f"--resume: {url} was begun by an earlier version of the engine, which gave every shard the"
            " labels of the first classes only and stored grey images in three channels; make a new bank"
            " (engine.bank verify, engine.bank merge and engine.distill can still read this one)"
        )


def _not_empty(url: str) -> UserError:
    return UserError(f"{url} is not empty; continue it with --resume or choose another bank")
