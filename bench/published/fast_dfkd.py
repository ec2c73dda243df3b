"""The loop of Fast-DFKD (Fang et al., AAAI 2022, arXiv 2112.06253), until a clock stops it.

A meta-generator θ is learned from batch to batch. A batch starts from a copy of θ and new z, takes a few
Adam steps on both, and moves θ by the sum of the steps' gradients (first-order MAML). The best images of each
batch go into a bank. In between, the student learns the teacher's softened logits on images of the bank.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.clock import Clock
from bench.published.generator import LATENT, PublishedGenerator
from bench.published.hooks import attach_averaged
from bench.published.memory import MemoryBank, PublishedPair, cosine
from bench.published.steps import augment
from bench.published.turns import Turns

WARMUP_SHARE = 1 / 11
"""Most of the time that goes into the images before training: 20 of the 220 epochs."""


@dataclass(frozen=True, kw_only=True)
class FastSettings:
    """What the authors' scripts use for WRN-40-2 -> WRN-16-1 on CIFAR with five steps a batch.

    Not carried over: the counts of epochs (220 of 400 training steps), which the clock replaces, and the one
    new start of the generator in epoch 140.
    """

    batch: int = 256
    steps: int = 5
    lr: float = 3e-3
    lr_z: float = 0.01
    w_statistics: float = 10.0
    w_class: float = 0.4
    w_adversary: float = 1.1
    memory_of_statistics: float = 0.9
    warmup_batches: int = 20
    """Batches before the training, without the adversary."""
    batches: int = 200
    """Batches during the training."""
    kd_batch: int = 256
    kd_lr: float = 0.2
    temperature: float = 20.0


class FastDfkd:
    """The state of the loop: meta-generator, bank, student and their optimizers."""

    def __init__(self, pair: PublishedPair, settings: FastSettings) -> None:
        self.pair, self.settings, self.bank = pair, settings, MemoryBank()
        self.hooks = attach_averaged(pair.teacher, settings.memory_of_statistics)
        self.meta = PublishedGenerator(pair.size, is_grey=pair.teacher.is_grey).to(pair.device)
        self.meta_optimizer = torch.optim.Adam(
            self.meta.parameters(), settings.lr * settings.steps, betas=(0.5, 0.999)
        )
        self.optimizer = torch.optim.SGD(pair.student.parameters(), settings.kd_lr, 0.9, weight_decay=1e-4)
        self.losses: list[float] = []
        """Of the latest batch of images, one for each step."""

    def synthesize(self, *, adversarial: bool) -> None:
        """Make a batch of images, and learn the meta-generator."""
        settings = self.settings
        self.pair.student.eval()
        z = torch.randn(settings.batch, LATENT, device=self.pair.device, requires_grad=True)
        labels = self.pair.random_labels(settings.batch)
        generator = copy.deepcopy(self.meta)
        groups: list[dict[str, Any]] = [
            {"params": generator.parameters()},
            {"params": [z], "lr": settings.lr_z},
        ]
        optimizer = torch.optim.Adam(groups, settings.lr, betas=(0.5, 0.999))
        self.meta_optimizer.zero_grad()
        best, self.losses = None, []
        for _ in range(settings.steps):
            images = generator(z)
            loss = self._loss(augment(images), labels, adversarial=adversarial)
            if best is None or loss.item() < min(self.losses):
                best = images.detach()
            self.losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            for ours, theirs in zip(self.meta.parameters(), generator.parameters(), strict=True):
                assert theirs.grad is not None
                ours.grad = theirs.grad.clone() if ours.grad is None else ours.grad + theirs.grad
            optimizer.step()
        self.meta_optimizer.step()
        for hook in self.hooks:
            hook.remember()
        assert best is not None
        self.bank.add(best, labels)

    def _loss(self, images: Tensor, labels: Tensor, *, adversarial: bool) -> Tensor:
        settings, logits = self.settings, self.pair.teacher(images)
        statistics = torch.stack([hook.loss for hook in self.hooks]).sum()
        loss = settings.w_statistics * statistics + settings.w_class * F.cross_entropy(logits, labels)
        if not adversarial:
            return loss
        students = self.pair.student(images)
        agrees = (students.argmax(1) == logits.argmax(1)).float()
        divergence = F.kl_div(students.log_softmax(1), logits.softmax(1), reduction="none").sum(1)
        return loss - settings.w_adversary * (agrees * divergence).mean()

    def distill(self, share: float) -> float:
        """Take a training step after this share of the training; return the loss."""
        settings = self.settings
        self.pair.student.train()
        images = augment(self.bank.draw(settings.kd_batch)[0])
        with torch.no_grad():
            target = F.softmax(self.pair.teacher(images) / settings.temperature, 1)
        logits = F.log_softmax(self.pair.student(images) / settings.temperature, 1)
        loss = settings.temperature**2 * F.kl_div(logits, target, reduction="batchmean")
        self.optimizer.param_groups[0]["lr"] = cosine(settings.kd_lr, share)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def train(pair: PublishedPair, clock: Clock, settings: FastSettings) -> tuple[int, int]:
    """Train the student until the clock ends; return the numbers of images and of training steps."""
    loop = FastDfkd(pair, settings)
    turns = Turns(clock=clock, batches=settings.warmup_batches)
    while turns.has_time_until(WARMUP_SHARE * clock.seconds):
        turns.make(lambda: loop.synthesize(adversarial=False))
    turns.restart(settings.batches)
    steps, spent = 0, 0.0
    while clock.has_time_for(spent):
        if turns.is_due:
            turns.make(lambda: loop.synthesize(adversarial=True))
            continue
        start = clock.elapsed
        loop.distill(turns.share)
        steps, spent = steps + 1, clock.elapsed - start
        clock.keep(pair.student)
    pair.student.eval()
    return len(loop.bank), steps
