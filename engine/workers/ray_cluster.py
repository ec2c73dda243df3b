"""A connection to a Ray cluster: what of Ray the project uses is in here."""

import logging
import os
import re
import socket
from typing import Any

from engine.errors import UserError
from engine.workers.events import Report
from engine.workers.ray_worker import RayWorker

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
