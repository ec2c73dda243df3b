"""The metrics, read over HTTP with Prometheus' own parser."""

import re
import socket
import time
from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.errors import UserError
from engine.generation.messages import Event
from engine.generation.monitor.progress import GenerationStats
from engine.generation.monitor.prometheus import Metrics
from tests.engine.generation.monitor.example_stats import at_work, done


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    server = Metrics("127.0.0.1", 0)
    yield server
    server.close(GenerationStats(target=1, found=0))


def _scraped(metrics: Metrics) -> tuple[dict[str, float], dict[str, str]]:
    """Return the samples by name and label, and the type of each metric."""
    with urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = {
        " ".join([it.name, *it.labels.values()]): it.value for family in families for it in family.samples
    }
    return samples, {family.name: family.type for family in families}


def test_what_is_scraped(metrics: Metrics) -> None:
    metrics.update(at_work())
    samples, kinds = _scraped(metrics)
    assert samples.pop("dda_start_time_seconds") == pytest.approx(time.time() - 100, abs=10)
    assert samples.pop("dda_remaining_seconds") == pytest.approx(100, rel=0.1)
    assert samples == {
        "dda_shards_target": 10,
        "dda_shards_found": 5,
        "dda_shards_committed_total": 2,
        "dda_shards_failed_total": 1,
        "dda_shard_retries_total": 1,
        "dda_errors_total": 3,
        "dda_workers_lost_total": 1,
        "dda_draining": 0,
        "dda_images_total": 240,
        "dda_images_kept_total": 144,
        "dda_variations_total": 216,
        "dda_variations_kept_total": 120,
        "dda_stage_images_total synthesize": 24,
        "dda_stage_images_total augment": 216,
        "dda_stage_seconds_total synthesize": 4,
        "dda_stage_seconds_total augment": 12,
        "dda_worker_up a": 1,
        "dda_worker_up b": 0,
        "dda_worker_shards_total a": 1,
        "dda_worker_shards_total b": 1,
        "dda_worker_images_total a": 120,
        "dda_worker_images_total b": 120,
        "dda_worker_resident_memory_bytes a": 10**9,
        "dda_worker_resident_memory_bytes b": 10**9,
    }
    assert kinds["dda_images"] == "counter"
    assert kinds["dda_worker_up"] == "gauge"


def test_a_scrape_reads_the_current_statistics(metrics: Metrics) -> None:
    stats = at_work()
    metrics.update(stats)
    stats.take(Event("c", done(8)))
    samples, _ = _scraped(metrics)
    assert samples["dda_shards_committed_total"] == 3
    assert samples["dda_worker_up c"] == 1


def test_before_the_first_update_and_the_first_shard(metrics: Metrics) -> None:
    assert _scraped(metrics) == ({}, {})
    metrics.update(GenerationStats(target=3, found=0))
    samples, _ = _scraped(metrics)
    assert samples["dda_shards_committed_total"] == 0
    assert "dda_remaining_seconds" not in samples


def test_a_port_in_use_is_the_users_to_change(metrics: Metrics) -> None:
    with pytest.raises(UserError, match=rf"--metrics-port {metrics.port}: 127.0.0.1 .*in use") as caught:
        Metrics("127.0.0.1", metrics.port)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("127.0.0.1", -1), ("no host of this", 0)])
def test_ports_and_hosts_that_are_none(host: str, port: int) -> None:
    with pytest.raises(UserError, match=rf"--metrics-port {port}: {re.escape(host)} "):
        Metrics(host, port)


def test_the_port_is_free_afterwards() -> None:
    one = Metrics("127.0.0.1", 0)
    one.close(GenerationStats(target=1, found=0))
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", one.port))
        again.listen()
