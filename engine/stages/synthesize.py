"""Synthesize: invert the teacher with a generator, one batch of images at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from engine.batch import ImageBatch
from engine.errors import NonFiniteError, UserError
from engine.models.classifier import Classifier
from engine.models.features import forward_with_batch_norm_inputs
from engine.models.generator import Generator, redraw
from engine.seeding import derive_seed, generator
from engine.stages.inversion_loss import batch_norm_loss
from engine.transforms import random_crop_flip

Adversary = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(augmented images, labels, teacher logits) -> a scalar that is low for images the student finds hard."""


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """The inversion of the teacher. Loss and optimizer of DDA (arXiv 2410.17606) and its released code."""

    batch_size: int = 200
    """Images optimized together; their BatchNorm statistics are matched as one batch."""
    steps: int = 200
    """Optimizer steps a batch; the images of the step with the lowest loss are kept."""
    start: Literal["reinit", "reuse", "meta"] = "reinit"
    """The generator's weights at a batch's start: redrawn, those the last batch ended with, or a meta-learned
    start that moves a little towards each batch's end (a few steps a batch are then enough)."""
    warmup_steps: int = 0
    """For reuse and meta: steps spent once, before the first batch, to leave the random start."""
    meta_rate: float = 0.5
    """For meta: how far the start moves towards where a batch ended (Reptile, arXiv 1803.02999)."""
    adversary: Literal["selfsup", "kl", "none"] = "selfsup"
    """What makes images hard in the rounds: the rotation head's error, or the student's divergence."""
    w_cls: float = 1.0
    """Weight of the cross-entropy of the teacher with the drawn label."""
    w_bn: float = 1.0
    """Weight of the BatchNorm statistics; 0 for a teacher without BatchNorm."""
    w_adv: float = 10.0
    """Weight of the adversary; the batches before the first round go without."""
    latent_dim: int = 256
    """Width of the generator's input z."""
    lr: float = 1e-3
    """Learning rate of Adam (betas 0.5, 0.999) over the generator's weights and z."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "latent_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"synthesize.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("w_cls", "w_bn", "w_adv", "warmup_steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"synthesize.{name} must be 0 or above, got {getattr(self, name)}")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"synthesize.lr must be above 0, got {self.lr}")
        if not 0 < self.meta_rate <= 1:
            raise UserError(f"synthesize.meta_rate must lie in (0, 1], got {self.meta_rate}")
        if self.start == "reinit" and self.warmup_steps:
            raise UserError(
                f"synthesize.warmup_steps is {self.warmup_steps}, but synthesize.start reinit redraws the "
                "weights of every batch; set it to 0, or start to reuse or meta"
            )


class Synthesizer:
    """Inverts `teacher`. State: the generator weights that the next batch starts from, `needs_warmup`.

    Batch i draws labels, z, crops and flips from (seed, i) alone; with `reinit` its images are a function of
    (seed, i), with `reuse` and `meta` also of the batches before it.
    """

    def __init__(
        self,
        teacher: Classifier,
        config: SynthesizeConfig,
        *,
        image_size: int,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.teacher, self.config, self.seed, self.accelerator = teacher, config, seed, accelerator
        network = Generator(latent_dim=config.latent_dim, channels=teacher.in_channels, size=image_size)
        self.generator = network.to(accelerator.device).to(memory_format=torch.channels_last)
        redraw(self.generator, generator(seed, "generator"))
        self.needs_warmup = config.warmup_steps > 0

    def batch(
        self,
        index: int,
        *,
        key_stride: int,
        adversary: Adversary | None,
        on_step: Callable[[int], None] | None = None,
    ) -> ImageBatch:
        """Batch number `index` of the run: `batch_size` images whose keys are multiples of `key_stride`.

        `on_step(steps)` is told of the steps done. Raises NonFiniteError where no step gave a finite loss.
        """
        if self.needs_warmup:
            self.needs_warmup = False
            self._invert(-1, self.config.warmup_steps, None, on_step)
        start = self._start(index)
        images, labels = self._invert(index, self.config.steps, adversary, on_step)
        self._keep_start(start)
        keys = (index * self.config.batch_size + torch.arange(len(labels))) * key_stride
        return ImageBatch(
            images=images,
            labels=labels,
            keys=keys,
            parents=torch.full_like(keys, -1),
            seeds=torch.full_like(keys, derive_seed(self.seed, "synthesize", index)),
        )

    def _start(self, index: int) -> list[Tensor]:
        if self.config.start == "reinit":
            redraw(self.generator, generator(self.seed, "generator", index))
        return [value.detach().clone() for value in self.generator.state_dict().values()]

    @torch.no_grad()
    def _keep_start(self, start: list[Tensor]) -> None:
        if self.config.start != "meta":
            return
        for value, before in zip(self.generator.state_dict().values(), start, strict=True):
            if value.is_floating_point():
                value.copy_(torch.lerp(before, value, self.config.meta_rate))

    def _invert(
        self, index: int, steps: int, adversary: Adversary | None, on_step: Callable[[int], None] | None
    ) -> tuple[Tensor, Tensor]:
        """One inversion: images uint8 [B, 3, H, W] and labels [B] on the CPU. The host waits at the end."""
        device, config = self.accelerator.device, self.config
        draw = generator(self.seed, "synthesize", index)
        labels = balanced_labels(config.batch_size, self.teacher.num_classes, draw).to(device)
        z = torch.randn(config.batch_size, config.latent_dim, generator=draw).to(device).requires_grad_()
        optimizer = torch.optim.Adam([*self.generator.parameters(), z], config.lr, betas=(0.5, 0.999))
        self.generator.train()
        best_loss = torch.full((), float("inf"), device=device)
        best_images: Tensor | None = None
        for _ in range(steps):
            with self.accelerator.autocast():
                images = self.generator(z)
            images = images.float()
            loss = self._loss(random_crop_flip(images, draw), labels, adversary)
            optimizer.zero_grad()
            loss.backward()
            better = loss.detach() < best_loss
            best_loss = torch.where(better, loss.detach(), best_loss)
            detached = images.detach()
            best_images = detached if best_images is None else torch.where(better, detached, best_images)
            optimizer.step()
            if on_step is not None:
                on_step(1)
        if not best_loss.isfinite():
            raise NonFiniteError(
                f"synthesize: no finite loss in the {steps} steps of batch {index}; lower synthesize.lr "
                "or take --compute.precision fp32"
            )
        assert best_images is not None
        pixels = (best_images * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        return pixels.contiguous().cpu(), labels.cpu()

    def _loss(self, grey_or_rgb: Tensor, labels: Tensor, adversary: Adversary | None) -> Tensor:
        config = self.config
        images = grey_or_rgb.expand(-1, 3, -1, -1)
        with self.accelerator.autocast():
            if config.w_bn > 0:
                logits, inputs = forward_with_batch_norm_inputs(self.teacher, images)
            else:
                logits, inputs = self.teacher(images), []
        loss = config.w_cls * F.cross_entropy(logits.float(), labels)
        if inputs:
            loss = loss + config.w_bn * batch_norm_loss(inputs)
        if adversary is not None and config.w_adv > 0:
            loss = loss + config.w_adv * adversary(images, labels, logits)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.state_dict(), "needs_warmup": self.needs_warmup}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.needs_warmup = state["needs_warmup"]


def balanced_labels(count: int, num_classes: int, draw: torch.Generator) -> Tensor:
    """int64 [count], each class as often as the others (up to one), in random order."""
    return (torch.arange(count) % num_classes)[torch.randperm(count, generator=draw)]
