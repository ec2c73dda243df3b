"""Open the observers that the command line asks for."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from engine.bank.storage import open_storage
from engine.generation.monitor.console import View
from engine.generation.monitor.observer import Guarded, Observer
from engine.generation.monitor.progress import GenerationStats
from engine.generation.monitor.scalars import tensorboard as tensorboard_scalars
from engine.generation.monitor.scalars import wandb as wandb_scalars
from engine.generation.monitor.status_file import StatusFile

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


@contextmanager
def open_observers(
    stats: GenerationStats,
    url: str,
    view: View,
    *,
    metrics_port: int | None = None,
    metrics_host: str = LOOPBACK,
    tensorboard: str | None = None,
    wandb: str | None = None,
) -> Iterator[list[Observer]]:
    """Those for the bank at `url`, `view` included; all are closed with the `stats` as it is at the end.

    Touches nothing at `url` before the first update, so it may be opened before the bank is. Raises UserError
    for a port, folder or project that cannot be had.
    """
    observers: list[Observer] = []
    with ExitStack() as closing:

        def add(observer: Observer, name: str) -> None:
            observers.append(Guarded(observer, name))
            closing.callback(observers[-1].close, stats)

        if tensorboard is not None:
            add(tensorboard_scalars(tensorboard), f"--tensorboard {tensorboard}")
        if wandb is not None:
            add(wandb_scalars(wandb, url), f"--wandb {wandb}")
        if metrics_port is not None:
            from engine.generation.monitor.prometheus import Metrics

            metrics = Metrics(metrics_host, metrics_port)
            add(metrics, "--metrics-port")
            logger.info("metrics: http://%s:%d/metrics", metrics_host, metrics.port)
        add(StatusFile(open_storage(url)), "the bank's status")
        observers.append(view)
        closing.callback(view.close, stats)
        yield observers


def add_monitor_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--metrics-port", type=int, metavar="N", help="serves metrics for Prometheus; 0: any")
    parser.add_argument("--metrics-host", default=LOOPBACK, metavar="HOST", help="where it listens")
    parser.add_argument("--tensorboard", metavar="DIR", help="writes curves for TensorBoard")
    parser.add_argument("--wandb", metavar="PROJECT", help="writes curves to a project of W&B")


def monitor_options(options: Namespace) -> dict[str, Any]:
    """What `open_observers` is told of the command line."""
    return {name: options[name] for name in ("metrics_port", "metrics_host", "tensorboard", "wandb")}
