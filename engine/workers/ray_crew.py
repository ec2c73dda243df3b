"""A crew of Ray actors, on this machine or on the nodes of a cluster."""

import logging
import time
from collections.abc import Iterable
from typing import Any

from engine.recipe import Recipe
from engine.workers.crew import Crew, Member
from engine.workers.events import Event, Left, Lost
from engine.workers.job import Job
from engine.workers.ray_cluster import Needs, RayCluster

logger = logging.getLogger(__name__)
LOOK_EVERY = 5.0
"""Seconds between two looks at the nodes of the cluster."""


class _Actor(Member):
    def __init__(self, name: str, job: Job, cluster: RayCluster, needs: Needs) -> None:
        super().__init__(name, job.depth)
        self._cluster = cluster
        self._actor = cluster.actor(needs, job.depth)
        self.calls: list[Any] = [self._actor.load.remote(job)]

    def send(self, number: int) -> None:
        self.calls.append(self._actor.make.remote(number))

    def dismiss(self) -> None:
        """Nothing to say: `collect` ends an actor that is leaving and has no call."""

    def kill(self) -> None:
        self._cluster.kill(self._actor)

    def news(self, call: Any) -> Iterable[Event]:
        """Of a call that has ended."""
        if call not in self.calls:
            return
        self.calls.remove(call)
        outcome = self._cluster.outcome(call)
        if isinstance(outcome, str):
            self.calls.clear()
            self.kill()  # it may be alive beyond a broken connection
            yield Event(self.name, Lost(tuple(self.under_way), outcome))
        else:
            yield from (Event(self.name, report) for report in outcome)


class RayCrew(Crew[_Actor]):
    """As many actors as asked for, or (None) as a cluster that grows and shrinks has places for."""

    def __init__(self, job: Job, cluster: RayCluster, workers: int | None) -> None:
        """Log if no node has room for a worker; the crew then waits for a node to join."""
        super().__init__()
        self._job, self._cluster, self._workers = job, cluster, workers
        self._needs = needs_of(job.recipe)
        self._slots, self._looked = cluster.slots(self._needs), time.monotonic()
        if self._slots == 0:
            each = ", ".join(f"{amount:g} {name}" for name, amount in self._needs.items() if amount)
            logger.info(
                f"no node of the cluster has a place for a worker, which takes {each}; waiting for one"
            )

    @property
    def capacity(self) -> int:
        if self._workers is not None:
            return self._workers
        if time.monotonic() - self._looked > LOOK_EVERY:
            self._slots, self._looked = self._cluster.slots(self._needs), time.monotonic()
        return max(1, self._slots)

    def start(self, name: str) -> _Actor:
        return _Actor(name, self._job, self._cluster, self._needs)

    def collect(self, seconds: float) -> Iterable[tuple[_Actor, Event]]:
        for member in [each for each in self.members if each.leaving and not each.calls]:
            member.kill()
            yield member, Event(member.name, Left())
        callers = {call: member for member in self.members for call in member.calls}
        if not callers:
            time.sleep(seconds)
            return
        for call in self._cluster.done(list(callers), seconds):
            for event in callers[call].news(call):
                yield callers[call], event


def needs_of(recipe: Recipe) -> Needs:
    """Of one worker of a settled recipe: a core a thread, and a GPU where the recipe is for one."""
    threads = recipe.compute.threads
    assert threads is not None, "the recipe is settled"
    return {"CPU": threads, "GPU": 1 if recipe.compute.device == "cuda" else 0}
