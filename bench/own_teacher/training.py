"""Train a network on labels, or on a teacher's logits, for a number of steps or of seconds.

The loop is SGD with Nesterov momentum and a one-cycle learning rate. The last step is the result, so no split
chooses one.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.own_teacher.image_folder import Images
from engine.errors import UserError

logger = logging.getLogger(__name__)

PEAK_LR, WARMUP, MOMENTUM, WEIGHT_DECAY = 0.1, 0.1, 0.9, 5e-4
SAVE_SECONDS = 20.0
Batches = Callable[[int], tuple[Tensor, Tensor]]
"""Step -> (images in [0, 1], [B, C, H, W]; labels, int64 [B], or the teacher's logits, [B, classes])."""


class Normalized(nn.Module):
    """A network for images in [0, 1]: it subtracts the mean of each channel and divides by its deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


@dataclass(kw_only=True)
class Training:
    """A training run, which continues from `partial` if that file is there."""

    model: Normalized
    batches: Batches
    steps: int | None
    """Steps in all, or None to train for `seconds`."""
    seconds: float | None
    """Seconds of training in all, without those of an interrupted process that were not saved."""
    steps_per_epoch: int
    """Steps between two lines of the log."""
    temperature: float
    """Of both softmaxes, if the targets are logits."""
    bf16: bool
    """Run the network's forward pass under autocast."""
    partial: Path
    settings: dict[str, Any]
    """What else the result depends on; it is written into `partial`."""
    optimizer: torch.optim.SGD = field(init=False)
    step: int = field(default=0, init=False)
    spent: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("a training ends after a number of steps or of seconds")
        self.optimizer = torch.optim.SGD(
            self.model.network.parameters(),
            PEAK_LR,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            nesterov=True,
        )

    @property
    def done(self) -> float:
        """Share of the budget that is spent."""
        if self.steps is not None:
            return self.step / self.steps
        assert self.seconds is not None
        return self.spent / self.seconds

    def run(self) -> None:
        """Train until the budget is spent.

        Raises UserError if the loss is not finite, or if `partial` was written with other settings.
        """
        self._restore()
        self.model.train().to(memory_format=torch.channels_last)
        saved, total, count = self.spent, 0.0, 0
        while self.done < 1:
            start = time.perf_counter()
            for group in self.optimizer.param_groups:
                group["lr"] = PEAK_LR * one_cycle(self.done)
            loss = self._loss(*self.batches(self.step))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total, count = total + float(loss.detach()), count + 1
            self.step += 1
            self.spent += time.perf_counter() - start
            if not math.isfinite(total):
                raise UserError(f"the loss is not finite at step {self.step}")
            if self.step % self.steps_per_epoch == 0 or self.done >= 1:
                logger.info(
                    "%3.0f %% step %d loss %.4f %.0f s", 100 * self.done, self.step, total / count, self.spent
                )
                total, count = 0.0, 0
            if self.spent - saved > SAVE_SECONDS:
                self._save()
                saved = self.spent

    def state(self) -> dict[str, Any]:
        """Return a checkpoint as training scripts write it: model, optimizer and epoch."""
        return {
            "model": self.model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.step // self.steps_per_epoch,
        }

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.model(images)
        if targets.is_floating_point():
            return distillation(logits.float(), targets, self.temperature)
        return F.cross_entropy(logits.float(), targets)

    def _save(self) -> None:
        temporary = self.partial.with_suffix(".writing")
        progress = {"step": self.step, "spent": self.spent, "settings": self.settings}
        torch.save({**self.state(), **progress}, temporary)
        temporary.replace(self.partial)

    def _restore(self) -> None:
        if not self.partial.exists():
            return
        state = torch.load(self.partial, weights_only=True)
        if state["settings"] != self.settings:
            raise UserError(
                f"--out: {self.partial} was written with other settings; delete it to start again"
            )
        self.model.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent = state["step"], state["spent"]
        logger.info("continue %s at step %d", self.partial, self.step)


def one_cycle(done: float) -> float:
    """Return the learning rate over its peak: a linear warm-up, then half a cosine to 0."""
    if done < WARMUP:
        return max(done / WARMUP, 1e-2)
    return (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))) / 2


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² KL(teacher || student) of logits [B, classes] (Hinton et al., arXiv 1503.02531)."""
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )


def top1(model: Normalized, images: Images, batch_size: int = 500) -> float:
    """Return the share of images whose top-1 class is their label, in float32."""
    model.eval()
    right = 0
    with torch.no_grad():
        for pixels, labels in zip(
            images.pixels.split(batch_size), images.labels.split(batch_size), strict=True
        ):
            batch = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
            right += int((model(batch).argmax(1) == labels).sum())
    return right / len(images.labels)
