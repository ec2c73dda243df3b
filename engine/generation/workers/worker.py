"""The worker: load the networks once, then make one shard after another."""

import logging
import os
import resource
import traceback
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from engine import networks
from engine.bank.agreement import Agreements
from engine.bank.manifest import first_difference, shard_name
from engine.bank.storage import open_storage
from engine.bank.views import write_views
from engine.bank.writer import write_shard
from engine.distributed import open_accelerator
from engine.errors import NonFiniteError, OutOfMemoryError, UserError
from engine.generation.messages import Done, Failed, Job
from engine.generation.overlap import stage_groups, thread_counts
from engine.generation.provenance import weights_of
from engine.generation.shard_generator import ShardGenerator
from engine.generation.stages import GeneratedBatch
from engine.progress import Progress
from export.errors import ExportError

logger = logging.getLogger(__name__)
FINAL = (UserError, ExportError, NonFiniteError)
"""Errors that a retry of the shard would raise again."""
ONE_LINE = (*FINAL, OutOfMemoryError, OSError)
"""Errors that are reported by their message alone; others are bugs and keep their traceback."""


class Worker:
    """Makes the shards of a job and writes their files to the bank; the coordinator commits them.

    The constructor raises UserError or ExportError for a network that cannot be loaded.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        accelerator = open_accelerator(job.recipe.compute)
        groups = stage_groups(job.recipe)
        loaded = networks.load(job.recipe, accelerator.device)
        opened = networks.open(job.recipe, loaded, accelerator, thread_counts(groups))
        self._progress = Progress(quiet=True)
        self._generator = ShardGenerator(job.recipe, opened, accelerator, self._progress, groups)
        self._reported: tuple[Mapping[str, float], Mapping[str, int]] = {}, {}

    def run(self, numbers: Iterator[int]) -> Generator[Done | Failed]:
        """Make the shards of `numbers`, in order, and yield a report of each. `numbers` may block."""
        with closing(self._generator.generate(numbers)) as results:
            for number, batch in results:
                if isinstance(batch, Exception):
                    yield failed(number, batch)
                    continue
                try:
                    yield self._write(number, batch)
                except Exception as error:
                    yield failed(number, error)

    def _write(self, number: int, batch: GeneratedBatch) -> Done:
        rows = batch.rows()
        entry = write_shard(self._job.url, number, rows, batch.kept_images(), self._job.header)
        if self._generator.views is not None and batch.outputs is not None:
            data = self._generator.views.packed(entry.files[entry.names.tar].sha256, batch.outputs)
            write_views(open_storage(self._job.url), number, data)
        result = batch.result
        seconds, images = self._since_last_shard()
        logger.debug("shard %s made", shard_name(number))
        return Done(
            number=number,
            entry=entry,
            variations=0 if result is None else len(result.kept),
            accepted=0 if result is None else int(result.kept.sum()),
            seconds=seconds,
            images=images,
            rss=rss(),
            agreements=Agreements.of(rows),
        )

    def _since_last_shard(self) -> tuple[dict[str, float], dict[str, int]]:
        """Return seconds and images of each stage since the last shard."""
        before, now = self._reported, (dict(self._progress.seconds), dict(self._progress.counts))
        self._reported = now
        seconds = {name: total - before[0].get(name, 0.0) for name, total in now[0].items()}
        return seconds, dict(Counter(now[1]) - Counter(before[1]))


def failed(number: int, error: Exception) -> Failed:
    """Return the report of a shard that raised `error`."""
    expected = isinstance(error, ONE_LINE)
    return Failed(
        number=number,
        reason=one_line(error),
        final=isinstance(error, FINAL),
        trace="" if expected else "".join(traceback.format_exception(error)),
    )


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line, with its type if it is a bug."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ONE_LINE) else f"{type(error).__name__}: {text}"


def rss() -> int:
    """Return the resident memory of this process in bytes."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def require_weights(job: Job) -> None:
    """Raise UserError if this machine's weights differ from the coordinator's."""
    difference = first_difference(job.header.facts, weights_of(job.recipe))
    if difference:
        raise UserError(
            f"the weights on this machine are not those of the bank: {difference}; copy the weights to it"
        )
