"""Clusters that are there already: two nodes, and a head that is lost and started again."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.bank.verify import verify
from tests.engine.workers.conftest import SHARDS
from tests.engine.workers.generations import Start, end, same_bank, until_made

HEAD, SECOND = "127.0.0.2", "127.0.0.3"
pytestmark = pytest.mark.ray
ALL = ("--shards", str(SHARDS), "--workers", "2")


@pytest.fixture(autouse=True)
def _as_clusters_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's clusters ask who joins them for a token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Cluster:
    """Nodes of a core each, on loopback addresses, of which the first is the head."""

    def __init__(self) -> None:
        self._port = free_port()
        self.address = f"{HEAD}:{self._port}"
        self._sessions: set[int] = set()

    def start(self, node: str) -> None:
        place = ["--head", f"--port={self._port}", "--include-dashboard=false"]
        if node != HEAD:
            place = [f"--address={self.address}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *place]
        with subprocess.Popen(
            [*command, f"--node-ip-address={node}", "--num-cpus=1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as starting:
            self._sessions.add(starting.pid)
            said, _ = starting.communicate(timeout=120)
            assert starting.returncode == 0, said

    def lose(self) -> None:
        """End all processes of all nodes at once."""
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(process.pid) in self._sessions:
                    os.kill(process.pid, signal.SIGKILL)
        self._sessions.clear()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.lose()


@pytest.mark.slow
def test_two_nodes_make_one_bank(cluster: Cluster, start: Start, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "bank"
    for node in (HEAD, SECOND):
        cluster.start(node)
    end(start(out, "--shards", str(SHARDS), "--ray", cluster.address))
    assert same_bank(out, undisturbed)
    workers = json.loads((out / ".status.json").read_bytes())["workers"]
    made = {worker["host"]: worker["shards"] for worker in workers.values()}
    assert made.keys() == {HEAD, SECOND}
    assert all(made.values())


@pytest.mark.slow
def test_a_head_that_is_lost_midway(
    cluster: Cluster, start: Start, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends; once there is a head again, the same command with --resume makes the rest."""
    out = tmp_path / "bank"
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "1")  # a minute by default
    cluster.start(HEAD)
    running = start(out, *ALL, "--ray", cluster.address, "--resume")
    until_made(running, out, 2)
    cluster.lose()
    running.communicate(timeout=120)
    assert running.returncode != 0
    assert [problem for problem in verify(str(out)) if "no committed shard" not in str(problem)] == []
    cluster.start(HEAD)
    end(start(out, *ALL, "--ray", cluster.address, "--resume"))
    assert same_bank(out, undisturbed)


def test_no_cluster_at_the_address_is_one_line(start: Start, tmp_path: Path) -> None:
    _, error = end(start(tmp_path / "bank", "--ray", f"{HEAD}:{free_port()}"), code=2)
    assert error.startswith(f"error: --ray {HEAD}:")
    assert error.count("\n") == 1
    assert not (tmp_path / "bank").exists()
