"""Whether a bank is sound, in full: each file's hash, what the files say of each other, and every image."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from engine.bank.card import card
from engine.bank.codecs import THREADS
from engine.bank.inspection import Problem, shard_problems
from engine.bank.manifest import VERSION, Manifest, ShardEntry
from engine.bank.names import CARD, MANIFEST, is_hidden
from engine.bank.reader import read_manifest
from engine.bank.storage import Storage, open_storage
from engine.bank.totals import total_stats


def verify(url: str) -> list[Problem]:
    """All that is wrong with the bank at `url`. Raises UserError where it has no manifest, or a bad one."""
    storage = open_storage(url)
    manifest = read_manifest(storage)

    def problems(entry: ShardEntry) -> list[Problem]:
        return shard_problems(storage, manifest.header, entry)

    with ThreadPoolExecutor(THREADS) as pool:
        found = [problem for shard in pool.map(problems, manifest.shards.values()) for problem in shard]
    return found + list(_strangers(storage, manifest)) + list(_card(storage, manifest, sound=not found))


def _strangers(storage: Storage, manifest: Manifest) -> Iterator[Problem]:
    known = {MANIFEST, CARD}.union(*(entry.names for entry in manifest.shards.values()))
    for name in storage.names():
        if name not in known and not is_hidden(name):
            yield Problem(name, "is of no committed shard; --resume removes what a killed writer left")


def _card(storage: Storage, manifest: Manifest, *, sound: bool) -> Iterator[Problem]:
    """It follows from the shards; a bank whose writer has not ended has none yet.

    The words of an earlier version's card are not known here.
    """
    if sound and manifest.version == VERSION and CARD in storage.names():
        expected = card(manifest, total_stats(storage, manifest))
        if storage.read(CARD) != expected:
            yield Problem(CARD, "is not what the shards give; --resume writes it anew")
