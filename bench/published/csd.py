"""The loop of CSD (arXiv 2307.04542), until a clock stops it.

A bank of images comes first: for each batch, a new generator and its z are optimized until the teacher sees
drawn labels in images with its BatchNorms' statistics. Then, in rounds, a batch of images is added on whose
rotations an auxiliary head on the student's features fails, and the student learns logits, labels and feature
maps of the whole bank, while the head learns to tell the rotations.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.clock import Clock
from bench.published.generator import LATENT, PublishedGenerator
from bench.published.hooks import attach
from bench.published.memory import MemoryBank, PublishedPair, cosine, with_feature_map
from bench.published.steps import PublishedDistillation, PublishedSynthesis, augment, quarter_turns
from bench.published.turns import IMAGE_SHARE, Turns
from engine.models.align import build_align_heads
from engine.models.generator import init_weights
from engine.stages.synthesis.adversary import RotationHead

BANK_SHARE = 10 / 11
"""Part of the generator's steps that the authors take before the first round."""
MIN_BATCHES = 4
"""Batches that must fit into the time before the first round; with less time, each takes fewer steps."""
MIN_STEPS = 20
TIMED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class CsdSettings:
    """What the authors' scripts use for WRN-40-2 -> WRN-16-1 on CIFAR-10.

    The rates and weights of the losses are in PublishedSynthesis and PublishedDistillation. Not carried over:
    the counts of training steps (100 rounds of 2000), which the clock replaces. A batch takes the published
    number of steps only if MIN_BATCHES of them fit in; the ratio of `bank_steps` to `round_steps` stays.
    """

    batch: int = 200
    bank_batches: int = 400
    bank_steps: int = 500
    rounds: int = 100
    """Each adds a batch of images."""
    round_steps: int = 200
    kd_batch: int = 128
    kd_lr: float = 0.1


class Csd:
    """The state of the loop: bank, student, rotation head and their optimizers."""

    def __init__(self, pair: PublishedPair, settings: CsdSettings, seed: int) -> None:
        self.pair, self.settings, self.bank = pair, settings, MemoryBank()
        forwards = with_feature_map(pair.teacher, "teacher"), with_feature_map(pair.student, "student")
        align = build_align_heads(pair.student, pair.teacher, pair.size, seed)[0].to(pair.device)
        self.student_forward = forwards[1]
        self.hooks = attach(pair.teacher)
        self.distillation = PublishedDistillation(
            *forwards, align, [*pair.student.parameters(), *align.parameters()]
        )
        self.draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            probe = self._features(torch.zeros(1, 3, *pair.size, device=pair.device))
        self.head = RotationHead(probe.shape[1], pair.student.num_classes).to(pair.device)
        self.restart_head()

    def synthesize(self, steps: int, *, adversarial: bool) -> PublishedSynthesis:
        """Make a batch of images in `steps` steps, and add it to the bank."""
        self.pair.student.eval()
        count, device = self.settings.batch, self.pair.device
        generator = PublishedGenerator(self.pair.size, is_grey=self.pair.teacher.is_grey)
        init_weights(generator, self.draw)
        labels = self.pair.random_labels(count)
        synthesis = PublishedSynthesis(
            self.pair.teacher,
            self.hooks,
            generator.to(device),
            torch.randn(count, LATENT, device=device),
            labels,
            student_map=(lambda images: self.student_forward(images)[1]) if adversarial else None,
            head=self.head if adversarial else None,
        )
        for _ in range(steps):
            synthesis.step()
        assert synthesis.best_images is not None
        self.bank.add(synthesis.best_images, labels)
        return synthesis

    def distill(self, share: float) -> float:
        """Take a training step after this share of the training, then one of the head; return the loss."""
        images, labels = self.bank.draw(self.settings.kd_batch)
        self.distillation.optimizer.param_groups[0]["lr"] = cosine(self.settings.kd_lr, share)
        self.pair.student.train()
        loss = self.distillation.step(images, labels)
        self.pair.student.eval()
        turned, joint = quarter_turns(augment(images), labels)
        with torch.no_grad():
            features = self._features(turned)
        self.head_optimizer.zero_grad()
        F.cross_entropy(self.head(features), joint).backward()
        self.head_optimizer.step()
        return loss

    def restart_head(self) -> None:
        """Draw new weights for the head; the authors do so after each batch of a round."""
        init_weights(self.head, self.draw)
        self.head_optimizer = torch.optim.SGD(self.head.parameters(), 0.1, 0.9, weight_decay=1e-4)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self.student_forward(images)[1].mean((2, 3))


def train(pair: PublishedPair, clock: Clock, settings: CsdSettings, seed: int) -> tuple[int, int]:
    """Train the student until the clock ends; return the numbers of images and of training steps."""
    loop = Csd(pair, settings, seed)
    time_of_bank = BANK_SHARE * IMAGE_SHARE * clock.seconds
    scale = _scale(loop, clock, time_of_bank)
    turns = Turns(clock=clock, batches=settings.bank_batches)
    while turns.has_time_until(time_of_bank):
        turns.make(lambda: _batch(loop, scale * settings.bank_steps, adversarial=False))
    turns.restart(settings.rounds)
    steps, spent = 0, 0.0
    while clock.has_time_for(spent):
        if steps and turns.is_due:
            turns.make(lambda: _batch(loop, scale * settings.round_steps, adversarial=True))
            continue
        start = clock.elapsed
        loop.distill(turns.share)
        steps, spent = steps + 1, clock.elapsed - start
        clock.keep(pair.student)
    return len(loop.bank), steps


def _batch(loop: Csd, steps: float, *, adversarial: bool) -> None:
    loop.synthesize(max(1, round(steps)), adversarial=adversarial)
    if adversarial:
        loop.restart_head()


def _scale(loop: Csd, clock: Clock, seconds: float) -> float:
    """Return the share of its steps that a batch can take if MIN_BATCHES of them are to fit in `seconds`."""
    loop.synthesize(1, adversarial=False)
    start = clock.elapsed
    loop.synthesize(TIMED_STEPS, adversarial=False)
    per_step = (clock.elapsed - start) / TIMED_STEPS
    loop.bank = MemoryBank()
    published = loop.settings.bank_steps
    fitting = int(seconds / MIN_BATCHES / per_step)
    return min(max(fitting, MIN_STEPS), published) / published
