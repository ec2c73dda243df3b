"""Workers as Ray actors, on this machine or on the nodes of a cluster.

`RayCluster` connects to a cluster, `RayPool` keeps one actor per worker, `RayWorker` runs in the actor.
"""

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
    Exited,
    Failed,
    Job,
    LoadFailed,
    Logged,
    Lost,
    Ready,
    Report,
    forward_log,
)
from engine.generation.workers.pool import WorkerHandle, WorkerPool

logger = logging.getLogger(__name__)

LOCAL = "local"
"""Address that starts a cluster on this machine."""
START_CLUSTER = f"start a cluster with `ray start --head`, or use --ray {LOCAL}"
REFRESH_SECONDS = 5.0
"""Seconds between two queries of the cluster's nodes."""
Resources = dict[str, float]
"""Amounts of Ray's resources (CPU, GPU) that one worker takes."""


class RayCluster:
    """A connection to a Ray cluster, which this process may have started; one at a time in a process."""

    def __init__(self, address: str, *, cpus: int) -> None:
        """Connect to `address`: host:port, auto, or LOCAL, which starts a cluster with `cpus` CPUs.

        Raises UserError if the package is not installed or there is no cluster at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
                f"--ray {address}: the cluster requires its token; set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN, or copy the head's ~/.ray/auth_token"
            ) from None
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"--ray {address}: {reason}; {START_CLUSTER}") from None

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def slots(self, resources: Resources) -> int:
        """Return how many workers with these resources fit on all nodes together."""
        return sum(
            int(min(node.get(name, 0) // amount for name, amount in resources.items() if amount))
            for node in self._nodes()
        )

    def cores(self, workers: int | None) -> int:
        """Return the number of cores for each worker.

        On nodes with GPUs, a node's cores are divided by its GPUs; otherwise by its share of `workers`.
        Raises UserError if no node has a CPU.
        """
        nodes = [node for node in self._nodes() if node.get("CPU", 0) >= 1]
        if not nodes:
            raise UserError("--ray: the cluster has no node with a CPU for workers; wait for one to join")
        with_gpus = [node["CPU"] // node["GPU"] for node in nodes if node.get("GPU", 0) >= 1]
        if with_gpus:
            return int(min(with_gpus))
        per_node = -(-workers // len(nodes)) if workers else 1
        return int(min(node["CPU"] for node in nodes) // per_node)

    def _nodes(self) -> list[dict[str, float]]:
        """Return the resources of each node that is alive."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def run(self, function: Any, *arguments: Any, on_gpu: bool) -> Any:
        """Call a function on a node and return its result.

        The node has a GPU if any node has one, or if `on_gpu` requires it.
        """
        has_gpus = any(node.get("GPU", 0) >= 1 for node in self._nodes())
        remote = self._ray.remote(num_gpus=1 if on_gpu or has_gpus else 0)(function)
        try:
            return self._ray.get(remote.remote(*arguments))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def actor(self, resources: Resources, depth: int) -> Any:
        """Start a RayWorker on a node with room; Ray does not restart it if it dies."""
        remote = self._ray.remote(RayWorker).options(
            num_cpus=resources["CPU"],
            num_gpus=resources["GPU"],
            max_concurrency=depth + 1,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )
        return remote.remote()

    def done(self, calls: list[Any], seconds: float) -> list[Any]:
        """Return the calls that have ended, as soon as one has, or nothing after `seconds`."""
        ended, _ = self._ray.wait(calls, num_returns=1, timeout=seconds)
        more, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        return list({*ended, *more})

    def outcome(self, call: Any) -> list[Report] | str:
        """Return what a call returned, or why its actor died."""
        try:
            reports: list[Report] = self._ray.get(call)
            return reports
        except self._ray.exceptions.RayError as error:
            return f"worker died: {_cause(error)}"

    def kill(self, actor: Any) -> None:
        """Kill an actor at once."""
        self._ray.kill(actor)


def _require_listener(address: str) -> None:
    """Raise UserError if nothing listens at host:port, which Ray itself would retry for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"--ray {address}: {error.strerror or error}; {START_CLUSTER}") from None


def _cause(error: Exception) -> str:
    """Return an actor's error without its address and ids, so that equal causes are counted together."""
    text = re.sub(r"^.* ip: \S+ ", "", " ".join(str(error).split()))
    return re.sub(r"\b[0-9a-f]{16,}\b", "...", text)[:200]


class _RayActor(WorkerHandle):
    def __init__(self, name: str, job: Job, cluster: RayCluster, resources: Resources) -> None:
        super().__init__(name, job.depth)
        self._cluster = cluster
        self._actor = cluster.actor(resources, job.depth)
        self.calls: list[Any] = [self._actor.load.remote(job)]

    def send(self, number: int) -> None:
        self.calls.append(self._actor.make.remote(number))

    def dismiss(self) -> None:
        """Do nothing: `RayPool.collect` kills an actor that is leaving once it has no call."""

    def kill(self) -> None:
        self._cluster.kill(self._actor)

    def events(self, call: Any) -> Iterable[Event]:
        """Yield the events of a call that has ended."""
        if call not in self.calls:
            return
        self.calls.remove(call)
        outcome = self._cluster.outcome(call)
        if isinstance(outcome, str):
            self.calls.clear()
            self.kill()  # the actor may be alive behind a broken connection
            yield Event(self.name, Lost(tuple(self.under_way), outcome))
        else:
            yield from (Event(self.name, report) for report in outcome)


class RayPool(WorkerPool[_RayActor]):
    """A pool of Ray actors: a fixed number, or as many as fit on a cluster that grows and shrinks."""

    def __init__(self, job: Job, cluster: RayCluster, workers: int | None) -> None:
        """Create an empty pool; `workers` None: as many as fit.

        Logs a line if no node has room for a worker; the pool then waits for a node to join.
        """
        super().__init__()
        self._job, self._cluster, self._workers = job, cluster, workers
        self._resources = resources_of(job.recipe)
        self._slots, self._checked = cluster.slots(self._resources), time.monotonic()
        if self._slots == 0:
            each = ", ".join(f"{amount:g} {name}" for name, amount in self._resources.items() if amount)
            logger.info("no node of the cluster has room for a worker, which takes %s; waiting for one", each)

    @property
    def capacity(self) -> int:
        if self._workers is not None:
            return self._workers
        if time.monotonic() - self._checked > REFRESH_SECONDS:
            self._slots, self._checked = self._cluster.slots(self._resources), time.monotonic()
        return max(1, self._slots)

    def start(self, name: str) -> _RayActor:
        return _RayActor(name, self._job, self._cluster, self._resources)

    def collect(self, seconds: float) -> Iterable[tuple[_RayActor, Event]]:
        for worker in [each for each in self.workers if each.leaving and not each.calls]:
            worker.kill()
            yield worker, Event(worker.name, Exited())
        callers = {call: worker for worker in self.workers for call in worker.calls}
        if not callers:
            time.sleep(seconds)
            return
        for call in self._cluster.done(list(callers), seconds):
            for event in callers[call].events(call):
                yield callers[call], event


def resources_of(recipe: Recipe) -> Resources:
    """Return what one worker of a resolved recipe takes: one CPU per thread, and a GPU on device cuda."""
    threads = recipe.compute.threads
    assert threads is not None, "the recipe is not resolved"
    return {"CPU": threads, "GPU": 1 if recipe.compute.device == "cuda" else 0}


class RayWorker:
    """The actor: call `load` once, then `make` for each shard; several shards may be under way at once."""

    def __init__(self) -> None:
        self._logged: deque[Logged] = deque()
        self._numbers: SimpleQueue[int | None] = SimpleQueue()
        self._waiting: deque[Future[Done | Failed]] = deque()
        self._order = threading.Lock()

    def load(self, job: Job) -> Sequence[Report]:
        """Load the networks; return the log records, then Ready or LoadFailed."""
        from engine.generation.workers.worker import ONE_LINE, Worker, one_line, require_weights

        forward_log(self._log, job.log_level)
        start = time.perf_counter()
        try:
            require_weights(job)
            worker = Worker(job)
        except ONE_LINE as error:
            return [*self._records(), LoadFailed(f"{_address()}: {one_line(error)}")]
        reports = worker.run(iter(self._numbers.get, None))
        threading.Thread(target=self._hand_out, args=(reports,), daemon=True).start()
        return [*self._records(), Ready(_address(), time.perf_counter() - start)]

    def make(self, number: int) -> Sequence[Report]:
        """Make one shard; return the log records, then Done or Failed."""
        result: Future[Done | Failed] = Future()
        with self._order:
            self._waiting.append(result)
            self._numbers.put(number)
        done = result.result()
        return [*self._records(), done]

    def _hand_out(self, reports: Iterator[Done | Failed]) -> None:
        """Give each report to the call that waits for it; if they end, kill the actor so that calls fail."""
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
