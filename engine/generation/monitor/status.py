"""`--status`: report a bank's progress and the state of its writer, from the bank's files alone."""

import time
from collections.abc import Iterator

import numpy as np

from engine.bank.card import histogram, total_stats
from engine.bank.manifest import STATUS, Manifest
from engine.bank.reader import read_manifest
from engine.bank.stats import Stats
from engine.bank.storage import open_storage
from engine.errors import UserError
from engine.generation.monitor.status_file import DRAINING, RUNNING, Record
from engine.progress import clock, counted, one_line, percent, rate

MAX_CLASSES = 20
"""Maximum number of lines of the histogram: the classes with the fewest and the most images."""
MAX_FAILED = 10
"""Maximum number of failed shards that are listed with their reasons."""


def status(url: str) -> str:
    """Return the report, several lines. Raises UserError if there is no bank or it is damaged."""
    storage = open_storage(url)
    manifest = read_manifest(storage)
    try:
        stats = total_stats(storage, manifest)
    except (ValueError, LookupError, TypeError, FileNotFoundError) as error:
        raise UserError(
            f"{url}: the counts of a shard are missing or damaged ({error});"
            f" python -m engine.bank verify {url} lists every damaged shard"
        ) from None
    record: Record | None = None
    try:
        record = Record.from_json(storage.read(STATUS))
    except FileNotFoundError:
        writer = [f"there is no {STATUS}, so nothing is known about the writer"]
    except ValueError as error:
        writer = [f"{STATUS} is damaged ({one_line(str(error))}), so nothing is known about the writer"]
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
            f"no update for {clock(age)}: {who} has died, hangs, or cannot reach the bank;"
            " to continue, run the same command with --resume"
        )
    texts = [f"{record.state} for {worked}", counted(record.workers_alive, "worker", "workers")]
    if record.made:
        texts.append(f"{rate(record.images_per_second)} images/s")
    if record.remaining_seconds is not None:
        texts.append(f"{clock(max(record.remaining_seconds - age, 0))} left")
    texts += [counted(record.retries, "retry", "retries")] if record.retries else []
    texts += [f"{record.workers_lost:,} lost"] if record.workers_lost else []
    return f"{', '.join(texts)} ({who}, last update {clock(age)} ago)"


def _failed(record: Record, manifest: Manifest) -> Iterator[str]:
    """Yield the failed shards that no later command has made."""
    failed = {name: it for name, it in record.failed.items() if name not in map(str, manifest.shards)}
    for name, reason in list(failed.items())[:MAX_FAILED]:
        yield f"failed shard {one_line(name)}: {one_line(reason)}"
    if len(failed) > MAX_FAILED:
        yield f"and {counted(len(failed) - MAX_FAILED, 'failed shard', 'failed shards')} more"


def _classes(manifest: Manifest, stats: Stats) -> Iterator[str]:
    names = [one_line(name) for name in manifest.header.class_names]
    counts = stats.kept_by_class
    shown = np.arange(len(names))
    title = f"kept images by class ({stats.coverage(manifest.header.wanted_classes)})"
    if len(names) > MAX_CLASSES:
        order = np.argsort(-counts, kind="stable")
        shown = np.concatenate([order[: MAX_CLASSES // 2], order[-MAX_CLASSES // 2 :]])
        title += f": the {MAX_CLASSES // 2} with the most and the fewest of {len(names):,}"
    yield title
    yield from (f"  {line}" for line in histogram([names[i] for i in shown], counts[shown].tolist()))
