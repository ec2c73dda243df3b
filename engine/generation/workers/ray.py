"""Workers as Ray actors, on this machine or on the nodes of a cluster."""

import logging
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from engine.config.recipe import Recipe
from engine.errors import UserError
from engine.generation.messages import (
    Done,
    Event,
    Failed,
    Job,
    Left,
    Logged,
    Lost,
    Ready,
    Report,
    Unable,
)
from engine.generation.workers.forwarding import forward_log
from engine.generation.workers.pool import WorkerHandle, WorkerPool

LOCAL = "local"
Needs = dict[str, float]
"""Of Ray's resources (CPU, GPU), for one worker."""


class RayCluster:
    """A connection to a cluster, or a cluster of this machine's own; one at a time in a process.

    Raises UserError where the package is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str, *, cpus: int) -> None:
        """`address`: host:port, auto, or LOCAL, which starts a cluster with so many `cpus`."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
        try:
            import ray
        except ImportError:
            raise UserError("--ray: the package is not installed; pip install 'dda-engine[ray]'") from None
        self._ray = ray
        _require_listener(address)
        own: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False} if address == LOCAL else {}
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
        except ray.exceptions.AuthenticationError:
            raise UserError(
                f"--ray {address}: the cluster asks for its token; set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN, or copy the head's ~/.ray/auth_token"
            ) from None
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"--ray {address}: {reason}; start a cluster with `ray start --head`, or take --ray local"
            ) from None

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def slots(self, needs: Needs) -> int:
        """How many workers with those needs all nodes together have a place for."""
        return sum(
            int(min(node.get(name, 0) // amount for name, amount in needs.items() if amount))
            for node in self._nodes()
        )

    def cores(self, workers: int | None) -> int:
        """A worker's share of its node: as many as there are GPUs share one, else `workers` share all.

        Raises UserError for a cluster without a node to work on.
        """
        nodes = [node for node in self._nodes() if node.get("CPU", 0) >= 1]
        if not nodes:
            raise UserError("--ray: the cluster has no node with a CPU for workers; wait for one to join")
        with_gpus = [node["CPU"] // node["GPU"] for node in nodes if node.get("GPU", 0) >= 1]
        if with_gpus:
            return int(min(with_gpus))
        a_node = -(-workers // len(nodes)) if workers else 1
        return int(min(node["CPU"] for node in nodes) // a_node)

    def _nodes(self) -> list[dict[str, float]]:
        """The resources of each node that is alive."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def run(self, function: Any, *arguments: Any, on_gpu: bool) -> Any:
        """What a function gives on a node that has a GPU, where there is one or it must be `on_gpu`."""
        has_gpus = any(node.get("GPU", 0) >= 1 for node in self._nodes())
        remote = self._ray.remote(num_gpus=1 if on_gpu or has_gpus else 0)(function)
        try:
            return self._ray.get(remote.remote(*arguments))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def actor(self, needs: Needs, depth: int) -> Any:
        """A RayWorker on a node with room; it is not restarted when it dies."""
        remote = self._ray.remote(RayWorker).options(
            num_cpus=needs["CPU"],
            num_gpus=needs["GPU"],
            max_concurrency=depth + 1,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )
        return remote.remote()

    def done(self, calls: list[Any], seconds: float) -> list[Any]:
        """Those that have ended within `seconds`, as soon as one has."""
        ended, _ = self._ray.wait(calls, num_returns=1, timeout=seconds)
        more, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        return list({*ended, *more})

    def outcome(self, call: Any) -> list[Report] | str:
        """What a call gave, or why its actor is dead."""
        try:
            found: list[Report] = self._ray.get(call)
            return found
        except self._ray.exceptions.RayError as error:
            return f"worker died: {_cause(error)}"

    def kill(self, actor: Any) -> None:
        """At once."""
        self._ray.kill(actor)


def _cause(error: Exception) -> str:
    """Without what is of one actor alone, so that deaths of one kind are counted as one."""
    text = re.sub(r"^.* ip: \S+ ", "", " ".join(str(error).split()))
    return re.sub(r"\b[0-9a-f]{16,}\b", "...", text)[:200]


def _require_listener(address: str) -> None:
    """Raises UserError where nothing listens at host:port; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"--ray {address}: {error.strerror or error}; start a cluster with `ray start --head`, or take"
            " --ray local"
        ) from None


logger = logging.getLogger(__name__)

LOOK_EVERY = 5.0
"""Seconds between two looks at the nodes of the cluster."""


class _RayActor(WorkerHandle):
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

    def events(self, call: Any) -> Iterable[Event]:
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


class RayPool(WorkerPool[_RayActor]):
    """As many actors as asked for, or (None) as a cluster that grows and shrinks has places for."""

    def __init__(self, job: Job, cluster: RayCluster, workers: int | None) -> None:
        """Log if no node has room for a worker; the pool then waits for a node to join."""
        super().__init__()
        self._job, self._cluster, self._workers = job, cluster, workers
        self._needs = needs_of(job.recipe)
        self._slots, self._looked = cluster.slots(self._needs), time.monotonic()
        if self._slots == 0:
            each = ", ".join(f"{amount:g} {name}" for name, amount in self._needs.items() if amount)
            logger.info("no node of the cluster has room for a worker, which takes %s; waiting for one", each)

    @property
    def capacity(self) -> int:
        if self._workers is not None:
            return self._workers
        if time.monotonic() - self._looked > LOOK_EVERY:
            self._slots, self._looked = self._cluster.slots(self._needs), time.monotonic()
        return max(1, self._slots)

    def start(self, name: str) -> _RayActor:
        return _RayActor(name, self._job, self._cluster, self._needs)

    def collect(self, seconds: float) -> Iterable[tuple[_RayActor, Event]]:
        for worker in [each for each in self.workers if each.leaving and not each.calls]:
            worker.kill()
            yield worker, Event(worker.name, Left())
        callers = {call: worker for worker in self.workers for call in worker.calls}
        if not callers:
            time.sleep(seconds)
            return
        for call in self._cluster.done(list(callers), seconds):
            for event in callers[call].events(call):
                yield callers[call], event


def needs_of(recipe: Recipe) -> Needs:
    """Of one worker of a settled recipe: a core a thread, and a GPU where the recipe is for one."""
    threads = recipe.compute.threads
    assert threads is not None, "the recipe is settled"
    return {"CPU": threads, "GPU": 1 if recipe.compute.device == "cuda" else 0}


class RayWorker:
    """`load` once, then `make` for each shard, of which several may be under way."""

    def __init__(self) -> None:
        self._logged: deque[Logged] = deque()
        self._numbers: SimpleQueue[int | None] = SimpleQueue()
        self._waiting: deque[Future[Done | Failed]] = deque()
        self._order = threading.Lock()

    def load(self, job: Job) -> Sequence[Report]:
        """Load the networks; return the log records, then Ready or Unable."""
        from engine.generation.workers.worker import (
            ONE_LINE,
            Worker,
            one_line,
            require_weights,
        )

        forward_log(self._log, job.log_level)

        begun = time.perf_counter()
        try:
            require_weights(job)
            worker = Worker(job)
        except ONE_LINE as error:
            return [*self._records(), Unable(f"{_address()}: {one_line(error)}")]
        reports = worker.run(iter(self._numbers.get, None))
        threading.Thread(target=self._hand_out, args=(reports,), daemon=True).start()
        return [*self._records(), Ready(_address(), time.perf_counter() - begun)]

    def make(self, number: int) -> Sequence[Report]:
        """Of one shard that it is Done or Failed; after the lines that were said."""
        mine: Future[Done | Failed] = Future()
        with self._order:
            self._waiting.append(mine)
            self._numbers.put(number)
        done = mine.result()
        return [*self._records(), done]

    def _hand_out(self, reports: Iterator[Done | Failed]) -> None:
        """Ends the actor when there are no more: whoever waits then learns that it is dead."""
        try:
            for report in reports:
                self._waiting.popleft().set_result(report)
        finally:
            os._exit(1)

    def _log(self, record: Logged) -> None:
        self._logged.append(replace(record, text=f"{_address()}: {record.text}"))

    def _records(self) -> list[Logged]:
        return [self._logged.popleft() for _ in range(len(self._logged))]


def _address() -> str:
    import ray

    address: str = ray.util.get_node_ip_address()
    return address
