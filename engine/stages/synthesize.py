"""Synthesize: invert the teacher with a generator, one batch of images at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from engine.errors import NonFiniteError, more_precision
from engine.models.classifier import Classifier
from engine.models.generator import Generator, redraw
from engine.seeding import derive_seed, generator
from engine.stages.batch import ImageBatch
from engine.stages.inversion import Inversion
from engine.stages.labels import batch_labels
from engine.stages.synthesize_config import SynthesizeConfig
from engine.stages.views_config import Views
from kernels.fuse import measured

Adversary = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(augmented images, labels, teacher logits) -> a scalar that is low for images the student finds hard."""


class Synthesizer:
    """Inverts `teacher`, which is in eval mode. `captured`: see Inversion; `class_weights`: see batch_labels.

    State: the generator weights that the next batch starts from, `needs_warmup`. Batch i draws labels, z,
    crops and flips from (seed, i) alone; with `reinit` its images are a function of (seed, i), with `reuse`
    and `meta` also of the batches before it, unless they are made `independent`.
    """

    def __init__(
        self,
        teacher: Classifier,
        config: SynthesizeConfig,
        *,
        image_size: int,
        seed: int,
        accelerator: Accelerator,
        captured: bool = True,
        class_weights: Sequence[float] | None = None,
        views: Views | None = None,
    ) -> None:
        self.captured, self.class_weights, self.views = captured, class_weights, views
        self.teacher, self.config, self.seed, self.accelerator = teacher, config, seed, accelerator
        network = Generator(latent_dim=config.latent_dim, channels=teacher.in_channels, size=image_size)
        self.generator = network.to(accelerator.device).to(memory_format=torch.channels_last)
        redraw(self.generator, generator(seed, "generator"))
        self.needs_warmup = config.warmup_steps > 0
        self._measured = measured(teacher)
        self._inversion: tuple[Adversary | None, Inversion] | None = None

    def batch(
        self,
        index: int,
        *,
        key_stride: int,
        adversary: Adversary | None,
        independent: bool = False,
        on_step: Callable[[int], None] | None = None,
    ) -> ImageBatch:
        """Batch number `index` of the run: `batch_size` images whose keys are multiples of `key_stride`.

        An `independent` batch starts from the warmed-up generator and leaves it as it was: a function of
        (seed, index) whatever the start. `on_step(steps)` is told of the steps done. Raises NonFiniteError
        where no step gave a finite loss; a batch that fails leaves no trace in those that follow.
        """
        if self.needs_warmup:
            with self._put_back_on_error(self._weights()):
                self._invert(-1, self.config.warmup_steps, None, on_step)
            self.needs_warmup = False
        start = self._start(index, independent)
        with self._put_back_on_error(start):
            images, labels = self._invert(index, self.config.steps, adversary, on_step)
        self._keep_start(start, 0.0 if independent else self.config.meta_rate)
        keys = (index * self.config.batch_size + torch.arange(len(labels))) * key_stride
        return ImageBatch(
            images=images,
            labels=labels,
            keys=keys,
            parents=torch.full_like(keys, -1),
            seeds=torch.full_like(keys, derive_seed(self.seed, "synthesize", index)),
        )

    def _start(self, index: int, independent: bool) -> list[Tensor]:
        """Puts the generator at its start; returns that start where `_keep_start` will need it."""
        if self.config.start == "reinit":
            redraw(self.generator, generator(self.seed, "generator", index))
            return []
        if self.config.start == "reuse" and not independent:
            return []
        return self._weights()

    def _weights(self) -> list[Tensor]:
        return [value.detach().clone() for value in self.generator.state_dict().values()]

    @contextmanager
    def _put_back_on_error(self, start: list[Tensor]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._keep_start(start, 0.0)
            raise

    @torch.no_grad()
    def _keep_start(self, start: list[Tensor], rate: float) -> None:
        """Moves the generator from where it is back to `start`, but for a share `rate` of the way."""
        if not start:
            return
        for value, before in zip(self.generator.state_dict().values(), start, strict=True):
            if rate == 0:
                value.copy_(before)
            elif value.is_floating_point():
                value.copy_(torch.lerp(before, value, rate))

    def _invert(
        self, index: int, steps: int, adversary: Adversary | None, on_step: Callable[[int], None] | None
    ) -> tuple[Tensor, Tensor]:
        """One inversion: images uint8 [B, 3, H, W] and labels [B] on the CPU. The host waits at the end."""
        config = self.config
        draw = generator(self.seed, "synthesize", index)
        labels = batch_labels(
            index,
            batch_size=config.batch_size,
            num_classes=self.teacher.num_classes,
            seed=self.seed,
            weights=self.class_weights,
        )
        z = torch.randn(config.batch_size, config.latent_dim, generator=draw)
        self.generator.train()
        inversion = self.inversion(adversary)
        inversion.begin(z, labels, draw)
        for _ in range(steps):
            inversion.step()
            if on_step is not None:
                on_step(1)
        if not inversion.best_loss.isfinite():
            advice = more_precision(
                self.accelerator.mixed_precision,
                "compute.precision",
                otherwise="lower synthesize.lr, or check teacher.weights",
            )
            raise NonFiniteError(
                f"synthesize: no finite loss in the {steps} steps of batch {index}; {advice}"
            )
        assert inversion.best_images is not None
        pixels = (inversion.best_images * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        return pixels.contiguous().cpu(), labels

    def inversion(self, adversary: Adversary | None) -> Inversion:
        """The inversion of the generator against `adversary`: the last one, where that is still the same."""
        if self._inversion is None or self._inversion[0] is not adversary:
            inversion = Inversion(
                self.generator,
                lambda images, labels: self._loss(images, labels, adversary),
                batch_size=self.config.batch_size,
                latent_dim=self.config.latent_dim,
                lr=self.config.lr,
                accelerator=self.accelerator,
                captured=self.captured,
                views=self.views,
            )
            self._inversion = adversary, inversion
        return self._inversion[1]

    def _loss(self, grey_or_rgb: Tensor, labels: Tensor, adversary: Adversary | None) -> Tensor:
        config = self.config
        images = grey_or_rgb.expand(-1, 3, -1, -1)
        with self.accelerator.autocast():
            if config.w_bn > 0:
                logits, statistics_loss = self._measured(images)
            else:
                logits, statistics_loss = self.teacher(images), None
        loss = config.w_cls * F.cross_entropy(logits.float(), labels)
        if statistics_loss is not None:
            loss = loss + config.w_bn * statistics_loss
        if adversary is not None and config.w_adv > 0:
            loss = loss + config.w_adv * adversary(images, labels, logits)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.state_dict(), "needs_warmup": self.needs_warmup}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.needs_warmup = state["needs_warmup"]
