"""A worker: loads the networks once, then makes one shard after another."""

import logging
import os
import resource
import traceback
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from engine.assembly import assemble
from engine.bank.agreement import Agreements
from engine.bank.manifest import first_difference, shard_name
from engine.bank.writer import write_shard
from engine.compute import open_accelerator
from engine.errors import NonFiniteError, OutOfMemoryError, UserError
from engine.generation import Generation, Made
from engine.lanes import lanes
from engine.progress import Progress
from engine.provenance import weights_of
from engine.workers.events import Done, Failed
from engine.workers.job import Job
from export.errors import ExportError

logger = logging.getLogger(__name__)
FINAL = (UserError, ExportError, NonFiniteError)
"""These come again however often a shard is tried."""
ONE_LINE = (*FINAL, OutOfMemoryError, OSError)
"""These say all that there is to say; others are defects."""


class Worker:
    """Makes shards of a job's bank and puts their files there; the coordinator commits them.

    Raises UserError or ExportError for what cannot be loaded.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        accelerator = open_accelerator(job.recipe.compute)
        parts = assemble(job.recipe, accelerator, logger.info, lanes(job.recipe))
        self._progress = Progress(quiet=True)
        self._generation = Generation(job.recipe, parts, accelerator, self._progress)
        self._told: tuple[Mapping[str, float], Mapping[str, int]] = {}, {}

    def run(self, numbers: Iterator[int]) -> Generator[Done | Failed]:
        """The shards of these numbers in their order; `numbers` may block, and ends the work when it ends."""
        with closing(self._generation.made(numbers)) as results:
            for number, made in results:
                if isinstance(made, Exception):
                    yield failed(number, made)
                    continue
                try:
                    yield self._written(number, made)
                except Exception as error:
                    yield failed(number, error)

    def _written(self, number: int, made: Made) -> Done:
        rows = made.rows()
        entry = write_shard(self._job.url, number, rows, made.kept_images(), self._job.header)
        verdict = made.verdict
        seconds, images = self._since_told()
        logger.debug("shard %s made", shard_name(number))
        return Done(
            number=number,
            entry=entry,
            variations=0 if verdict is None else len(verdict.kept),
            accepted=0 if verdict is None else int(verdict.kept.sum()),
            seconds=seconds,
            images=images,
            rss=rss(),
            agreements=Agreements.of(rows),
        )

    def _since_told(self) -> tuple[dict[str, float], dict[str, int]]:
        """Seconds and images of each stage since the last shard."""
        before, now = self._told, (dict(self._progress.seconds), dict(self._progress.counts))
        self._told = now
        seconds = {name: total - before[0].get(name, 0.0) for name, total in now[0].items()}
        return seconds, dict(Counter(now[1]) - Counter(before[1]))


def failed(number: int, error: Exception) -> Failed:
    """The report of a shard that `error` ended."""
    expected = isinstance(error, ONE_LINE)
    return Failed(
        number=number,
        reason=one_line(error),
        final=isinstance(error, FINAL),
        trace="" if expected else "".join(traceback.format_exception(error)),
    )


def one_line(error: BaseException) -> str:
    """What an exception says, with its kind where that says more."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ONE_LINE) else f"{type(error).__name__}: {text}"


def rss() -> int:
    """Bytes of memory that this process holds."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def require_weights(job: Job) -> None:
    """Raises UserError where this machine's weights are not those that the coordinator found on its own."""
    difference = first_difference(job.header.facts, weights_of(job.recipe))
    if difference:
        raise UserError(f"this machine has other weights than the bank: {difference}; copy those of the bank")
