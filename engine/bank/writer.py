"""Writes a bank shard by shard: a shard is in it whole or not at all, however the process ends."""

import logging
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace

from engine.bank.card import card, total_stats
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
from engine.errors import UserError


class Ledger:
    """Knows the bytes that its own writer last read or wrote."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: bytes | None = None

    def read(self) -> Manifest | None:
        """None where there is none. Raises UserError for a damaged one."""
        self._known = self._found()
        return None if self._known is None else Manifest.from_json(self._known, self._storage.url)

    def replace(self, manifest: Manifest) -> None:
        """The moment at which what is new is committed. Raises UserError where another writer was here."""
        self.require_unchanged()
        data = manifest.to_json()
        if data != self._known:
            self._storage.write(MANIFEST, data)
        self._known = data

    def require_unchanged(self) -> None:
        if self._found() != self._known:
            raise UserError(
                f"{self._storage.url} was taken over by another writer; nothing committed is lost;"
                " let one writer alone continue it with --resume"
            )

    def _found(self) -> bytes | None:
        try:
            return self._storage.read(MANIFEST)
        except FileNotFoundError:
            return None


logger = logging.getLogger(__name__)


class BankWriter:
    """The only writer of a bank: a folder is locked; at a URL who opens a bank takes it over.

    There each manifest names its writer, and a writer that finds another's instead of its own ends.
    """

    def __init__(self, storage: Storage, header: Header, claim: ExitStack) -> None:
        self._storage = storage
        self._manifest = Manifest(header=header, writer=storage.token)
        self._ledger = Ledger(storage)
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
        """Starts the bank at `url`, or continues it with `resume`.

        A bad shard goes out of the bank, to be made again, and is logged; but where one of the
        `irreplaceable` numbers is bad or missing, UserError is raised and nothing is changed. So it is for a
        folder that is in use, not empty, not a bank, or a bank of another recipe or of an earlier version.
        """
        storage = open_storage(url)
        with ExitStack() as claim:
            if not claim.enter_context(storage.alone()):
                raise UserError(
                    f"{url} is being written by another process; wait for it or give another bank"
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
        """By their numbers, ascending."""
        return self._manifest.shards

    def rows(self, number: int) -> Rows:
        """Of a committed shard."""
        name = self.committed[number].names.rows
        data = self._storage.read(name)
        damage = self.committed[number].files[name].damage(Fingerprint.of(data))
        if damage:
            raise UserError(f"{self._storage.url}/{name} {damage}; --resume makes that shard anew")
        return from_parquet(data, len(self._manifest.header.class_names)).rows

    def commit(self, number: int, rows: Rows, images: Images) -> ShardEntry:
        """Puts a shard into the bank; `images` are uint8 [K, H, W, 3], those kept, in the rows' order.

        Does nothing where the same shard is there already. Raises UserError where another shard is, or where
        another process has taken the bank over.
        """
        contents = shard_contents(number, rows, images, self._manifest.header)
        return self.adopt(number, contents, len(rows), len(images), origin=None)

    def adopt(
        self, number: int, contents: Mapping[str, bytes], rows: int, images: int, origin: Origin | None
    ) -> ShardEntry:
        """Commits a shard whose files were made before, by their names in this bank: as `commit` does."""
        if number < 0 or tuple(contents) != shard_files(number):
            raise ValueError(f"{', '.join(contents)} are not the files of shard {number}")
        entry = ShardEntry(files=fingerprints(contents), rows=rows, images=images, origin=origin)
        if number in self.committed:
            self._require_same(number, entry)
            return entry
        self._ledger.require_unchanged()
        for name, data in contents.items():
            self._storage.write(name, data)
        self._add({number: entry})
        return entry

    def enter(self, entries: Mapping[int, ShardEntry]) -> None:
        """Commits, by one manifest, shards whose files other processes have put there by `write_shard`.

        Raises UserError as `commit` does, and where a file is not there: the bank's folder is not shared.
        """
        new = {number: entry for number, entry in entries.items() if number not in self.committed}
        for number in entries.keys() - new.keys():
            self._require_same(number, entries[number])
        for entry in new.values():
            self._require_there(entry)
        if new:
            self._add(new)

    def keep_below(self, number: int) -> None:
        """Takes the shards from `number` on out of the bank, to be made again."""
        kept = {old: entry for old, entry in self.committed.items() if old < number}
        if len(kept) < len(self.committed):
            self._replace(replace(self._manifest, shards=kept))
            self._remove_leftovers()

    def close(self) -> None:
        """Writes the card, removes what killed workers left half-written, and gives the bank free."""
        with self._claim:
            self._ledger.require_unchanged()
            for name in filter(is_part, self._storage.names()):
                self._storage.remove(name)
            self._storage.write(CARD, card(self._manifest, total_stats(self._storage, self._manifest)))
            if self._manifest.writer is not None:
                self._replace(replace(self._manifest, writer=None))

    def _start(self, resume: bool, irreplaceable: Collection[int]) -> None:
        url = self._storage.url
        used = _used(self._storage)
        stored = self._ledger.read() if resume or not used else None
        if (used or stored) and not resume:
            raise _not_empty(url)
        if used and stored is None:
            raise UserError(f"{url} has no {MANIFEST}, so it is no bank to continue; give another bank")
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
                    " is not made again: restore the file from a copy, then repeat the command"
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

    def _require_there(self, entry: ShardEntry) -> None:
        for name, expected in entry.files.items():
            if self._storage.size(name) != expected.size:
                raise UserError(
                    f"{self._storage.url}/{name} is not there as its worker wrote it; give all machines one"
                    " shared folder, or a URL (s3://...)"
                )

    def _replace(self, manifest: Manifest) -> None:
        self._ledger.replace(manifest)
        self._manifest = manifest

    def _damage(self, entry: ShardEntry) -> str | None:
        for name, expected in entry.files.items():
            damage = expected.damage(self._storage.fingerprint(name))
            if damage:
                return f"{name} {damage}"
        return None

    def _remove_leftovers(self) -> None:
        """Removes what killed writers left, and the card, which holds no longer."""
        for name in self._storage.names():
            number = shard_number(name)
            if name == CARD or is_part(name) or (number is not None and number not in self.committed):
                self._storage.remove(name)

    def _require_same(self, number: int, entry: ShardEntry) -> None:
        if entry != self.committed[number]:
            raise UserError(
                f"{self._storage.url}: shard {shard_name(number)} came out otherwise than the committed one;"
                " continue it on the machine and with the settings that made it, or give another bank"
            )


def write_shard(url: str, number: int, rows: Rows, images: Images, header: Header) -> ShardEntry:
    """Puts the files of a shard there, which is not in the bank before `BankWriter.enter` has its entry.

    May run in any number of processes beside the bank's writer; `rows` and `images` as for `commit`.
    """
    storage = open_storage(url)
    contents = shard_contents(number, rows, images, header)
    for name, data in contents.items():
        storage.write(name, data)
    return ShardEntry(files=fingerprints(contents), rows=len(rows), images=len(images))


def require_new(url: str) -> None:
    """Raises UserError where there is anything at `url`."""
    storage = open_storage(url)
    if _used(storage):
        raise _not_empty(storage.url)


def _used(storage: Storage) -> bool:
    return any(not is_hidden(name) for name in storage.names())


def _require_current(url: str, manifest: Manifest) -> None:
    """Raises UserError for a bank of an earlier version: what is added would not be of its kind."""
    if manifest.version != VERSION:
        raise UserError(
            f"--resume: {url} was begun by an earlier version of the engine, which gave every shard the"
            " labels of the first classes only and stored grey images in three channels; make a new bank"
            " (engine.bank verify, engine.bank merge and engine.distill still take this one)"
        )


def _not_empty(url: str) -> UserError:
    return UserError(f"{url} is not empty; continue it with --resume or give another bank")
