"""Which shards a training run was begun with: it can only be continued with the same ones."""

from collections.abc import Iterable

from engine.bank.manifest import ShardEntry
from engine.bank.names import shard_name
from engine.bank.reader import BankReader
from engine.errors import UserError

Snapshot = dict[int, str]
"""SHA-256 of each shard's tar, by its number."""


def snapshot(bank: BankReader, numbers: Iterable[int] | None = None) -> Snapshot:
    """Of the numbered shards; of all by default."""
    shards = bank.shards
    chosen = shards if numbers is None else numbers
    return {number: _tar_sha256(shards[number]) for number in chosen}


def require_snapshot(bank: BankReader, url: str, taken: Snapshot) -> None:
    """Raises UserError that names the first shard that is missing or another one."""
    shards = bank.shards
    for number, sha256 in taken.items():
        found = _tar_sha256(shards[number]) if number in shards else None
        if found != sha256:
            what = "is missing" if found is None else "is another one"
            raise UserError(
                f"{url}: shard {shard_name(number)}, which this run was trained on, {what};"
                " restore it, or begin again in another --out"
            )


def _tar_sha256(entry: ShardEntry) -> str:
    return entry.files[entry.names.tar].sha256
