"""A generation as metrics that Prometheus scrapes."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.errors import UserError
from engine.generation.monitor.progress import GenerationStats


class Metrics(Collector):
    """An HTTP server of this process on a port of its own; its page is empty before the first update."""

    def __init__(self, host: str, port: int) -> None:
        """Port 0 takes any free one. Raises UserError where the port or the host is not to be had."""
        self._stats: GenerationStats | None = None
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--metrics-port {port}: {host} does not give it ({error}); name a free one,"
                " or another --metrics-host"
            ) from None
        self.port: int = self._server.server_port

    def update(self, stats: GenerationStats) -> None:
        self._stats = stats

    def close(self, stats: GenerationStats) -> None:  # noqa: ARG002
        """Frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        """Called by the server's threads at each scrape."""
        if self._stats is None:
            return
        stats = self._stats.copy()
        yield from _shards(stats)
        yield from _images(stats)
        yield from _stages(stats)
        yield from _workers(stats)


def _shards(stats: GenerationStats) -> Iterator[Metric]:
    yield GaugeMetricFamily("dda_shards_target", "Shards that the bank shall have.", stats.target)
    yield GaugeMetricFamily("dda_shards_found", "Shards that it had at the start.", stats.found)
    yield CounterMetricFamily("dda_shards_committed", "Shards made and committed.", stats.made)
    yield CounterMetricFamily("dda_shards_failed", "Shards given up.", len(stats.failed))
    yield CounterMetricFamily("dda_shard_retries", "Further tries of shards.", stats.retries)
    yield CounterMetricFamily("dda_errors", "Failures and losses, mended ones too.", stats.errors.total())
    yield CounterMetricFamily("dda_workers_lost", "Workers that died.", stats.workers_lost)
    yield GaugeMetricFamily("dda_draining", "1 while no new shard is begun.", stats.draining)
    started = time.time() - stats.elapsed
    yield GaugeMetricFamily("dda_start_time_seconds", "Start of the generation since 1970.", started)
    if stats.remaining is not None:
        yield GaugeMetricFamily("dda_remaining_seconds", "To the end at the pace so far.", stats.remaining)


def _images(stats: GenerationStats) -> Iterator[Metric]:
    yield CounterMetricFamily("dda_images", "Images of the shards made, rejected ones too.", stats.rows)
    yield CounterMetricFamily("dda_images_kept", "Images kept.", stats.images)
    yield CounterMetricFamily("dda_variations", "Variations of images.", stats.variations)
    yield CounterMetricFamily("dda_variations_kept", "Variations that passed the filter.", stats.accepted)


def _stages(stats: GenerationStats) -> Iterator[Metric]:
    images = CounterMetricFamily("dda_stage_images", "Images through the stage.", labels=["stage"])
    seconds = CounterMetricFamily("dda_stage_seconds", "Time of all workers in it.", labels=["stage"])
    for name, stage in stats.stages.items():
        images.add_metric([name], stage.images)
        seconds.add_metric([name], stage.seconds)
    yield from (images, seconds)


def _workers(stats: GenerationStats) -> Iterator[Metric]:
    up = GaugeMetricFamily("dda_worker_up", "1 while the worker lives.", labels=["worker"])
    shards = CounterMetricFamily("dda_worker_shards", "Shards that it made.", labels=["worker"])
    images = CounterMetricFamily("dda_worker_images", "Images of those shards.", labels=["worker"])
    memory = GaugeMetricFamily(
        "dda_worker_resident_memory_bytes", "Of its process, after its last shard.", labels=["worker"]
    )
    for name, worker in stats.workers.items():
        up.add_metric([name], worker.alive)
        shards.add_metric([name], worker.shards)
        images.add_metric([name], worker.images)
        memory.add_metric([name], worker.rss)
    yield from (up, shards, images, memory)
