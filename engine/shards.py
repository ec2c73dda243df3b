"""Generation of a bank, shard by shard, by one worker or many."""

from collections.abc import Sequence

from engine.bank.names import shard_name
from engine.bank.writer import BankWriter, require_new
from engine.errors import FailedShardsError
from engine.monitor.observer import Observer
from engine.monitor.view import View
from engine.provenance import bank_header
from engine.recipe import Recipe
from engine.workers.coordinator import Coordinator
from engine.workers.job import Job
from engine.workers.opening import open_crew
from engine.workers.queue import ShardQueue
from engine.workers.ray_cluster import RayCluster
from engine.workers.signals import requests
from engine.workers.tally import Tally


def generate(
    recipe: Recipe,
    url: str,
    shards: int,
    *,
    resume: bool,
    workers: int | None,
    cluster: RayCluster | None,
    retries: int,
    view: View,
    observers: Sequence[Observer] = (),
) -> str:
    """Makes those of the shards 0 to `shards` - 1 that the bank at `url` does not have; says what there is.

    `workers` and `cluster`: see `open_crew`. A shard that fails, or whose worker dies, is tried again up to
    `retries` times. SIGTERM and its like: see `Requests`. Raises UserError for what the user can mend and
    FailedShardsError, once all others are committed, for the shards that were given up.
    """
    view.say(f"{recipe.name}: {recipe.compute.device}, {recipe.compute.precision}")
    if not resume:
        require_new(url)
    job = Job(recipe=recipe, url=url, header=bank_header(recipe))
    tally = Tally(target=shards, found=0)
    with requests() as asked, open_crew(job, workers, cluster, view.say) as crew:
        coordinator = Coordinator(crew, tally, asked, observers=(view, *observers), say=view.say)
        if not resume:
            coordinator.await_worker()  # what fails to load leaves no bank
        with BankWriter.open(url, job.header, resume=resume, say=view.say) as bank:
            missing = [number for number in range(shards) if number not in bank.committed]
            tally.found = shards - len(missing)
            coordinator.run(bank, ShardQueue(missing, retries))
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
        return f"{line}; {tally.left} are left, --resume makes them"
    return line
