"""Clusters that are there already: two nodes, and a head that is lost and started again."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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


def ray(*arguments: str) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_head(port: int) -> None:
    ray(
        *("start", "--head", f"--node-ip-address={HEAD}", f"--port={port}", "--num-cpus=1"),
        "--include-dashboard=false",
    )


@pytest.fixture
def address() -> Iterator[str]:
    """Of a cluster of two nodes with a core each, on two loopback addresses."""
    port = free_port()
    try:
        start_head(port)
        ray("start", f"--address={HEAD}:{port}", f"--node-ip-address={SECOND}", "--num-cpus=1")
        yield f"{HEAD}:{port}"
    finally:
        ray("stop", "--force")


@pytest.mark.slow
def test_two_nodes_make_one_bank(address: str, start: Start, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "bank"
    end(start(out, "--shards", str(SHARDS), "--ray", address))
    assert same_bank(out, undisturbed)
    workers = json.loads((out / ".status.json").read_bytes())["workers"]
    made = {worker["host"]: worker["shards"] for worker in workers.values()}
    assert made.keys() == {HEAD, SECOND}
    assert all(made.values())


@pytest.mark.slow
def test_a_head_that_is_lost_midway(
    start: Start, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends; once there is a head again, the same command with --resume makes the rest."""
    out, port = tmp_path / "bank", free_port()
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")  # a minute by default
    try:
        start_head(port)
        running = start(out, *ALL, "--ray", f"{HEAD}:{port}", "--resume")
        until_made(running, out, 3)
        ray("stop", "--force")
        running.communicate(timeout=120)
        assert running.returncode != 0
        assert [problem for problem in verify(str(out)) if "no committed shard" not in str(problem)] == []
        start_head(port)
        end(start(out, *ALL, "--ray", f"{HEAD}:{port}", "--resume"))
    finally:
        ray("stop", "--force")
    assert same_bank(out, undisturbed)


def test_no_cluster_at_the_address_is_one_line(start: Start, tmp_path: Path) -> None:
    _, error = end(start(tmp_path / "bank", "--ray", f"{HEAD}:{free_port()}"), code=2)
    assert error.startswith(f"error: --ray {HEAD}:")
    assert error.count("\n") == 1
    assert not (tmp_path / "bank").exists()
