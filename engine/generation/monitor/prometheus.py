"""Serve the statistics of a generation as Prometheus metrics."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.errors import UserError
from engine.generation.monitor.progress import GenerationStats


class Metrics(Collector):
    """An observer with an HTTP server for Prometheus; its page is empty before the first update."""

    def __init__(self, host: str, port: int) -> None:
        """Start the server; port 0 takes any free port. Raises UserError if it cannot listen."""
        self._stats: GenerationStats | None = None
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--metrics-port {port}: {host} cannot be listened on ({error}); set a free port"
                " or another --metrics-host"
            ) from None
        self.port: int = self._server.server_port

    def update(self, stats: GenerationStats) -> None:
        self._stats = stats

    def close(self, stats: GenerationStats) -> None:  # noqa: ARG002
        """Stop the server and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; the server's threads call this at each scrape."""
        if self._stats is None:
            return
        stats = self._stats.copy()
        yield from _shards(stats)
        yield from _images(stats)
        yield from _stages(stats)
        yield from _workers(stats)


def _shards(stats: GenerationStats) -> Iterator[Metric]:
    yield GaugeMetricFamily("dda_shards_target", "Shards that the bank should have.", stats.target)
    yield GaugeMetricFamily("dda_shards_found", "Shards that the bank had at the start.", stats.found)
    yield CounterMetricFamily("dda_shards_committed", "Shards committed by this command.", stats.made)
    yield CounterMetricFamily("dda_shards_failed", "Shards that failed for good.", len(stats.failed))
    yield CounterMetricFamily("dda_shard_retries", "Retries of shards.", stats.retries)
    yield CounterMetricFamily(
        "dda_errors", "Failed shards and lost workers, retried ones included.", stats.errors.total()
    )
    yield CounterMetricFamily("dda_workers_lost", "Workers that died.", stats.workers_lost)
    yield GaugeMetricFamily("dda_draining", "1 while no new shards are started.", stats.draining)
    started = time.time() - stats.elapsed
    yield GaugeMetricFamily("dda_start_time_seconds", "Start of the generation, Unix time.", started)
    if stats.remaining is not None:
        yield GaugeMetricFamily("dda_remaining_seconds", "Estimated time to the end.", stats.remaining)


def _images(stats: GenerationStats) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "dda_images", "Images of the committed shards, rejected ones included.", stats.rows
    )
    yield CounterMetricFamily("dda_images_kept", "Images kept.", stats.images)
    yield CounterMetricFamily("dda_variations", "Variations made.", stats.variations)
    yield CounterMetricFamily("dda_variations_kept", "Variations that passed the filter.", stats.accepted)


def _stages(stats: GenerationStats) -> Iterator[Metric]:
    images = CounterMetricFamily("dda_stage_images", "Images that went through the stage.", labels=["stage"])
    seconds = CounterMetricFamily(
        "dda_stage_seconds", "Time in the stage, summed over workers.", labels=["stage"]
    )
    for name, stage in stats.stages.items():
        images.add_metric([name], stage.images)
        seconds.add_metric([name], stage.seconds)
    yield from (images, seconds)


def _workers(stats: GenerationStats) -> Iterator[Metric]:
    up = GaugeMetricFamily("dda_worker_up", "1 while the worker lives.", labels=["worker"])
    shards = CounterMetricFamily("dda_worker_shards", "Shards made by the worker.", labels=["worker"])
    images = CounterMetricFamily("dda_worker_images", "Images made by the worker.", labels=["worker"])
    memory = GaugeMetricFamily(
        "dda_worker_resident_memory_bytes", "Memory after the last shard.", labels=["worker"]
    )
    for name, worker in stats.workers.items():
        up.add_metric([name], worker.alive)
        shards.add_metric([name], worker.shards)
        images.add_metric([name], worker.images)
        memory.add_metric([name], worker.rss)
    yield from (up, shards, images, memory)
