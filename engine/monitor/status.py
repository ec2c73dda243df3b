"""What a bank says of itself and of its writer, from its files alone."""

import time
from collections.abc import Iterator

import numpy as np

from engine.bank.card import histogram, total_stats
from engine.bank.manifest import STATUS, Manifest
from engine.bank.reader import read_manifest
from engine.bank.stats import Stats
from engine.bank.storage import open_storage
from engine.errors import UserError
from engine.monitor.record import DRAINING, RUNNING, Record
from engine.monitor.words import counted, one_line, percent, rate
from engine.progress import clock

CLASSES = 20
"""At most so many lines of the histogram: those with the fewest and the most images."""


FAILED = 10
"""At most so many failed shards with their reasons."""


def status(url: str) -> str:
    """Some lines. Raises UserError where there is no bank, or a damaged one."""
    storage = open_storage(url)
    manifest = read_manifest(storage)
    try:
        stats = total_stats(storage, manifest)
    except (ValueError, LookupError, TypeError, FileNotFoundError) as error:
        raise UserError(
            f"{url}: the counts of a shard are missing or damaged ({error});"
            f" python -m engine.bank verify {url} names every bad shard"
        ) from None
    record: Record | None = None
    try:
        record = Record.from_json(storage.read(STATUS))
    except FileNotFoundError:
        writer = ["no writer has left a status here: nothing is known of one"]
    except ValueError as error:
        writer = [f"{STATUS} is damaged ({one_line(str(error))}): nothing is known of the writer"]
    else:
        writer = [_writer(record, time.time()), *_failed(record, manifest)]
        writer += [f"warning: {one_line(record.warning)}"] if record.warning else []
    return "\n".join([_counts(url, manifest, stats, record), *writer, *_classes(manifest, stats)])


def _counts(url: str, manifest: Manifest, stats: Stats, record: Record | None) -> str:
    count = len(manifest.shards)
    shards = counted(count, "shard", "shards")
    if record is not None and record.target > count:
        shards = f"{count:,} of {record.target:,} shards"
    variations, accepted = int(stats.similarity_of_all.sum()), int(stats.similarity_of_kept.sum())
    share = f"; {percent(accepted / variations)} of the variations kept" if variations else ""
    return f"{url}: {shards} committed; {stats.rows:,} images made, {stats.images:,} kept{share}"


def _writer(record: Record, now: float) -> str:
    age, worked = max(now - record.updated, 0.0), clock(record.updated - record.started)
    who = f"process {record.pid} on {one_line(record.host)}"
    if record.state not in (RUNNING, DRAINING):
        return f"{one_line(record.state)} since {clock(age)}, after {worked} ({who})"
    if age > record.patience:
        return (
            f"no sign of life for {clock(age)}: {who} has died, is cut off from the bank or hangs;"
            " the same command with --resume goes on where it ended"
        )
    parts = [f"{record.state} for {worked}", counted(record.workers_alive, "worker", "workers")]
    if record.made:
        parts.append(f"{rate(record.images_per_second)} images/s")
    if record.remaining_seconds is not None:
        parts.append(f"{clock(max(record.remaining_seconds - age, 0))} left")
    parts += [counted(record.retries, "retry", "retries")] if record.retries else []
    parts += [f"{record.workers_lost:,} lost"] if record.workers_lost else []
    return f"{', '.join(parts)} ({who}, last sign of life {clock(age)} ago)"


def _failed(record: Record, manifest: Manifest) -> Iterator[str]:
    """Those that no later command has made."""
    failed = {name: it for name, it in record.failed.items() if name not in map(str, manifest.shards)}
    for name, reason in list(failed.items())[:FAILED]:
        yield f"failed shard {one_line(name)}: {one_line(reason)}"
    if len(failed) > FAILED:
        yield f"and {counted(len(failed) - FAILED, 'failed shard', 'failed shards')} more"


def _classes(manifest: Manifest, stats: Stats) -> Iterator[str]:
    names = [one_line(name) for name in manifest.header.class_names]
    counts = stats.kept_by_class
    shown = np.arange(len(names))
    title = f"kept images by class ({stats.coverage(manifest.header.wanted_classes)})"
    if len(names) > CLASSES:
        order = np.argsort(-counts, kind="stable")
        shown = np.concatenate([order[: CLASSES // 2], order[-CLASSES // 2 :]])
        title += f": the {CLASSES // 2} with the most and the fewest of {len(names):,}"
    yield title
    yield from (f"  {line}" for line in histogram([names[i] for i in shown], counts[shown].tolist()))
