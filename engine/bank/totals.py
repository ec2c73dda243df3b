"""The counts of a whole bank."""

from concurrent.futures import ThreadPoolExecutor

from engine.bank.codecs import THREADS
from engine.bank.manifest import Manifest
from engine.bank.stats import Stats
from engine.bank.storage import Storage


def total_stats(storage: Storage, manifest: Manifest) -> Stats:
    """The sum over the committed shards."""
    zero = Stats.zero(len(manifest.header.class_names))
    with ThreadPoolExecutor(THREADS) as pool:
        documents = pool.map(storage.read, (entry.names.stats for entry in manifest.shards.values()))
        return sum(map(Stats.from_json, documents), start=zero)
