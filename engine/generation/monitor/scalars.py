"""Write the statistics of a generation as curves over committed shards, for TensorBoard or W&B."""

from collections.abc import Callable, Mapping

from engine.curves import Curves
from engine.errors import UserError
from engine.generation.monitor.progress import GenerationStats


class Scalars:
    """An observer that passes values and step to `log` after each commit, and calls `finish` at the end."""

    def __init__(self, log: Callable[[Mapping[str, float], int], None], finish: Callable[[], None]) -> None:
        self._log, self._finish = log, finish
        self._step = 0

    def update(self, stats: GenerationStats) -> None:
        if stats.made and stats.committed != self._step:
            self._step = stats.committed
            self._log(_values(stats), self._step)

    def close(self, stats: GenerationStats) -> None:
        self.update(stats)
        self._finish()


def tensorboard(folder: str) -> Scalars:
    """Return an observer for TensorBoard. Raises UserError if the folder cannot be written to."""
    try:
        writer = Curves(folder)
    except OSError as error:
        raise UserError(f"--tensorboard {folder}: {error}; name a folder that can be written to") from None

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Scalars(log, writer.close)


def wandb(project: str, bank: str) -> Scalars:
    """Return an observer for a W&B run whose configuration holds the bank's URL.

    Raises UserError if the package is missing or W&B rejects the run.
    """
    try:
        import wandb
    except ImportError:
        raise UserError("--wandb: the package is not installed; pip install 'dda-engine[wandb]'") from None
    try:
        run = wandb.init(project=project, config={"bank": bank}, settings=wandb.Settings(console="off"))
    except wandb.Error as error:
        raise UserError(f"--wandb {project}: {error}; run `wandb login`, or set WANDB_MODE=offline") from None
    return Scalars(lambda values, step: run.log(dict(values), step=step), run.finish)


def _values(stats: GenerationStats) -> dict[str, float]:
    values = {
        "images per second": stats.rate,
        "images kept": stats.images,
        "retries": stats.retries,
        "workers": sum(worker.alive for worker in stats.workers.values()),
        "failed shards": len(stats.failed),
    }
    if stats.acceptance is not None:
        values["acceptance"] = stats.acceptance
    stages = {f"images per second of a worker/{name}": it.rate() for name, it in stats.stages.items()}
    return values | stages
