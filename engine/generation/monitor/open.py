"""The monitor flags of the command line, and the observers that they open."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from engine.bank.storage import open_storage
from engine.generation.monitor.console import View
from engine.generation.monitor.progress import GenerationStats, Observer
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
    """Yield the observers of the bank at `url`, including `view`; close them with the final `stats`.

    Nothing at `url` is touched before the first update, so this can be opened before the bank.
    Raises UserError for a port, folder or project that cannot be used.
    """
    observers: list[Observer] = []
    with ExitStack() as closing:

        def add(observer: Observer, name: str) -> None:
            observers.append(GuardedObserver(observer, name))
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
    """Add the flags whose values `open_observers` takes."""
    parser.add_argument(
        "--metrics-port",
        type=int,
        metavar="N",
        help="serve Prometheus metrics on this port (0: any free port)",
    )
    parser.add_argument(
        "--metrics-host", default=LOOPBACK, metavar="HOST", help="address that the metrics server listens on"
    )
    parser.add_argument("--tensorboard", metavar="DIR", help="write curves for TensorBoard to this folder")
    parser.add_argument("--wandb", metavar="PROJECT", help="log curves to this Weights & Biases project")


def monitor_options(options: Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `open_observers`."""
    return {name: options[name] for name in ("metrics_port", "metrics_host", "tensorboard", "wandb")}


class GuardedObserver:
    """Wraps an observer: logs its first error and never propagates one."""

    def __init__(self, observer: Observer, name: str) -> None:
        self._observer, self._name = observer, name
        self._has_failed = False

    def update(self, stats: GenerationStats) -> None:
        with self._guard():
            self._observer.update(stats)

    def close(self, stats: GenerationStats) -> None:
        with self._guard():
            self._observer.close(stats)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # from a file system, a network or another library
            if not self._has_failed:
                kind = type(error).__name__
                logger.error("%s: %s: %s; the generation continues", self._name, kind, error)
            self._has_failed = True
