"""The observers that a command line asks for."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from engine.bank.storage import open_storage
from engine.monitor.observer import Guarded, Observer
from engine.monitor.scalars import tensorboard as tensorboard_scalars
from engine.monitor.scalars import wandb as wandb_scalars
from engine.monitor.status_file import StatusFile
from engine.monitor.view import View
from engine.workers.tally import Tally

logger = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"


@contextmanager
def open_observers(
    tally: Tally,
    url: str,
    view: View,
    *,
    metrics_port: int | None = None,
    metrics_host: str = LOOPBACK,
    tensorboard: str | None = None,
    wandb: str | None = None,
) -> Iterator[list[Observer]]:
    """Those for the bank at `url`, `view` included; all are closed with the `tally` as it is at the end.

    Touches nothing at `url` before the first update, so it may be opened before the bank is. Raises UserError
    for a port, folder or project that cannot be had.
    """
    observers: list[Observer] = []
    with ExitStack() as closing:

        def add(observer: Observer, name: str) -> None:
            observers.append(Guarded(observer, name))
            closing.callback(observers[-1].close, tally)

        if tensorboard is not None:
            add(tensorboard_scalars(tensorboard), f"--tensorboard {tensorboard}")
        if wandb is not None:
            add(wandb_scalars(wandb, url), f"--wandb {wandb}")
        if metrics_port is not None:
            from engine.monitor.prometheus import Metrics

            metrics = Metrics(metrics_host, metrics_port)
            add(metrics, "--metrics-port")
            logger.info("metrics: http://%s:%d/metrics", metrics_host, metrics.port)
        add(StatusFile(open_storage(url)), "the bank's status")
        observers.append(view)
        closing.callback(view.close, tally)
        yield observers
