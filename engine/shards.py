"""Generation of a bank, shard by shard, by one worker or many."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from engine.bank.manifest import MANIFEST, shard_name
from engine.bank.storage import absolute, open_storage
from engine.bank.writer import BankWriter, require_new
from engine.coverage import MORE_SHARDS, coverage_warning
from engine.errors import FailedShardsError
from engine.monitor.opening import open_observers
from engine.monitor.view import View
from engine.provenance import bank_header
from engine.recipe import Recipe
from engine.workers.coordinator import Coordinator
from engine.workers.job import Job
from engine.workers.queue import ShardQueue
from engine.workers.signals import requests
from engine.workers.tally import Tally
from engine.workers.workforce import Workforce

logger = logging.getLogger(__name__)


def generate(
    recipe: Recipe,
    url: str,
    shards: int,
    *,
    resume: bool,
    workforce: Workforce,
    watched: Mapping[str, Any],
) -> str:
    """Makes those of the shards 0 to `shards` - 1 that the bank at `url` does not have; says what there is.

    `watched`: the options of `open_observers`. For signals see `Requests`. Raises UserError for what the user
    can mend and FailedShardsError, once all others are committed, for the shards that were given up.
    """
    logger.info("%s: %s, %s", recipe.name, recipe.compute.device, recipe.compute.precision)
    if warning := coverage_warning(recipe, shards, MORE_SHARDS):
        logger.warning(warning)
    if not resume:
        require_new(url)
    job = Job(
        recipe=recipe, url=absolute(url), header=bank_header(recipe), log_level=logger.getEffectiveLevel()
    )
    tally = Tally(target=shards, found=0)
    with ExitStack() as stack:
        observers = stack.enter_context(open_observers(tally, url, View(), **watched))
        asked = stack.enter_context(requests())
        crew = stack.enter_context(workforce.open(job))
        coordinator = Coordinator(crew, tally, asked, observers=observers)
        is_new = open_storage(url).size(MANIFEST) is None
        if is_new and not coordinator.await_worker():  # what fails to load leaves no bank
            return f"{url}: ended before its first shard"
        with BankWriter.open(url, job.header, resume=resume) as bank:
            missing = [number for number in range(shards) if number not in bank.committed]
            tally.begin(found=shards - len(missing))
            coordinator.run(bank, ShardQueue(missing, workforce.retries))
            images = sum(entry.images for entry in bank.committed.values())
    return _ending(url, tally, images)


def _ending(url: str, tally: Tally, images: int) -> str:
    """Raises FailedShardsError."""
    line = f"{url}: {tally.made} shards made, {tally.found} found sound; {images} images"
    if tally.failed:
        named = [f"{shard_name(number)} ({reason})" for number, reason in sorted(tally.failed.items())]
        raise FailedShardsError(
            f"{line}; {len(named)} shards failed: {'; '.join(named)}; --resume tries them again"
        )
    if tally.left:
        line = f"{line}; {tally.left} are left, --resume makes them"
    if warning := tally.agreements.warning:
        logger.warning(warning)
    return line
