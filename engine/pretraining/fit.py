"""The training loop of the embedded assets: one-cycle learning rate, one checkpoint per epoch."""

import copy
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.atomic import replacing
from engine.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The training schedule of one network."""

    epochs: int
    steps_per_epoch: int
    max_lr: float
    warmup: float = 0.2
    ema_decay: float | None = None
    seed: int = 0
    """Seed of the weights and of the batches that `losses` yields."""


def fit(
    name: str,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Callable[[int], Iterable[Tensor]],
    config: Fit,
    checkpoint: Path,
) -> nn.Module:
    """Train `module` on every loss that `losses(epoch)` yields; continue from `checkpoint` if it exists.

    Return `module`, or its exponential moving average if `config.ema_decay` is set. The last epoch is the
    result: no split is used to choose one. Raises UserError if the checkpoint was made with other settings.
    """
    steps = config.epochs * config.steps_per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.max_lr, steps, pct_start=config.warmup)
    average = copy.deepcopy(module).requires_grad_(False) if config.ema_decay else None
    objects: dict[str, Any] = {"module": module, "optimizer": optimizer, "schedule": schedule}
    if average is not None:
        objects["average"] = average
    for epoch in range(_restore(checkpoint, objects, config), config.epochs):
        start, total, count = time.perf_counter(), torch.zeros(()), 0
        for loss in losses(epoch):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if average is not None and config.ema_decay:
                step = epoch * config.steps_per_epoch + count
                _average(average, module, min(config.ema_decay, (step + 1) / (step + 10)))
            total, count = total + loss.detach().float().cpu(), count + 1
        _save(checkpoint, objects, config, epoch + 1)
        seconds = time.perf_counter() - start
        loss_mean = float(total) / count
        logger.info("%s epoch %d/%d loss %.4f %.0f s", name, epoch + 1, config.epochs, loss_mean, seconds)
    return module if average is None else average


@torch.no_grad()
def _average(average: nn.Module, module: nn.Module, decay: float) -> None:
    ours, theirs = list(average.state_dict().values()), list(module.state_dict().values())
    floats = [i for i, value in enumerate(ours) if value.is_floating_point()]
    torch._foreach_lerp_([ours[i] for i in floats], [theirs[i] for i in floats], 1 - decay)


def _save(checkpoint: Path, objects: dict[str, Any], config: Fit, epoch: int) -> None:
    states = {name: each.state_dict() for name, each in objects.items()}
    with replacing(checkpoint) as temporary, temporary.open("wb") as file:
        torch.save({"epoch": epoch, "settings": asdict(config), **states}, file)


def _restore(checkpoint: Path, objects: dict[str, Any], config: Fit) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if state["settings"] != asdict(config):
        raise UserError(f"--work: {checkpoint} was made with other settings; give another --work")
    for name, each in objects.items():
        each.load_state_dict(state[name])
    return int(state["epoch"])
