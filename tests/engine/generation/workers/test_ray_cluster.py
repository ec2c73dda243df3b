"""Existing Ray clusters: two nodes, and a head that dies and is started again."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.bank.reader import BankReader
from engine.bank.verify import verify
from tests.engine.generation.workers.conftest import SHARDS
from tests.engine.generation.workers.generations import Start, end, same_bank, until_made

HEAD, SECOND = "127.0.0.2", "127.0.0.3"
pytestmark = pytest.mark.ray
ALL = ("--shards", str(SHARDS), "--workers", "2")


@pytest.fixture(autouse=True)
def _as_clusters_are(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Require a token, as real clusters do, and keep all of Ray's files in one folder."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)  # in /tmp: the paths of Ray's sockets must be short
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Cluster:
    """Nodes with one core each, on loopback addresses. The first one is the head."""

    def __init__(self) -> None:
        self._port = free_port()
        self.address = f"{HEAD}:{self._port}"
        self._sessions: set[int] = set()

    def start(self, node: str) -> None:
        role = ["--head", f"--port={self._port}", "--include-dashboard=false"]
        if node != HEAD:
            role = [f"--address={self.address}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *role]
        with subprocess.Popen(
            [*command, f"--node-ip-address={node}", "--num-cpus=1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as starting:
            self._sessions.add(starting.pid)
            try:
                out, _ = starting.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                self.lose()
                raise
            assert starting.returncode == 0, out

    def lose(self) -> None:
        """Kill all processes of all nodes at once."""
        while found := [process for process in psutil.process_iter() if self._is_of_a_node(process)]:
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._sessions.clear()

    def _is_of_a_node(self, process: psutil.Process) -> bool:
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and os.getsid(process.pid) in self._sessions
        return False


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
    end(start(out, "--shards", str(2 * SHARDS), "--ray", cluster.address))  # enough for the slower node, too
    assert verify(str(out)) == []
    first = BankReader.open(str(out)).only(range(SHARDS))
    assert first.images_sha256 == BankReader.open(str(undisturbed)).images_sha256
    workers = json.loads((out / ".status.json").read_bytes())["workers"]
    made = {worker["host"]: worker["shards"] for worker in workers.values()}
    assert made.keys() == {HEAD, SECOND}
    assert all(made.values())


@pytest.mark.slow
def test_a_head_that_is_lost_midway(
    cluster: Cluster, start: Start, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends; with a new head, the same command with --resume makes the other shards."""
    out, wait_for_head = tmp_path / "bank", "RAY_gcs_rpc_server_reconnect_timeout_s"
    cluster.start(HEAD)
    monkeypatch.setenv(wait_for_head, "1")  # the default is a minute
    running = start(out, *ALL, "--ray", cluster.address, "--resume")
    until_made(running, out, 2)
    cluster.lose()
    running.communicate(timeout=120)
    assert running.returncode != 0
    assert [problem for problem in verify(str(out)) if "no committed shard" not in str(problem)] == []
    monkeypatch.delenv(wait_for_head)
    cluster.start(HEAD)
    end(start(out, *ALL, "--ray", cluster.address, "--resume"))
    assert same_bank(out, undisturbed)


def test_no_cluster_at_the_address_is_one_line(start: Start, tmp_path: Path) -> None:
    _, error = end(start(tmp_path / "bank", "--ray", f"{HEAD}:{free_port()}"), code=2)
    assert error.startswith(f"error: --ray {HEAD}:")
    assert error.count("\n") == 1
    assert not (tmp_path / "bank").exists()
