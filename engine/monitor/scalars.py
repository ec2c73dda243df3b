"""A generation as curves over its committed shards, in TensorBoard or W&B."""

from collections.abc import Callable, Mapping

from engine.errors import UserError
from engine.training.curves import Curves
from engine.workers.tally import Tally


class Scalars:
    """`log` gets the values and the step whenever shards were committed; `finish` ends its library's run."""

    def __init__(self, log: Callable[[Mapping[str, float], int], None], finish: Callable[[], None]) -> None:
        self._log, self._finish = log, finish
        self._step = 0

    def update(self, tally: Tally) -> None:
        if tally.made and tally.committed != self._step:
            self._step = tally.committed
            self._log(_values(tally), self._step)

    def close(self, tally: Tally) -> None:
        self.update(tally)
        self._finish()


def tensorboard(folder: str) -> Scalars:
    """Raises UserError for a folder that cannot be written to."""
    try:
        writer = Curves(folder)
    except OSError as error:
        raise UserError(f"--tensorboard {folder}: {error}; give a folder to write to") from None

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Scalars(log, writer.close)


def wandb(project: str, bank: str) -> Scalars:
    """A run with the bank's URL in its configuration.

    Raises UserError where the package is missing or W&B takes no run.
    """
    try:
        import wandb
    except ImportError:
        raise UserError("--wandb needs a package; pip install 'dda-engine[wandb]'") from None
    try:
        run = wandb.init(project=project, config={"bank": bank}, settings=wandb.Settings(console="off"))
    except wandb.Error as error:
        raise UserError(
            f"--wandb {project}: {error}; log in by `wandb login`, or set WANDB_MODE=offline"
        ) from None
    return Scalars(lambda values, step: run.log(dict(values), step=step), run.finish)


def _values(tally: Tally) -> dict[str, float]:
    values = {
        "images per second": tally.rate,
        "images kept": tally.images,
        "retries": tally.retries,
        "workers": sum(worker.alive for worker in tally.workers.values()),
        "failed shards": len(tally.failed),
    }
    if tally.acceptance is not None:
        values["acceptance"] = tally.acceptance
    stages = {f"images per second of a worker/{name}": it.rate() for name, it in tally.stages.items()}
    return values | stages
