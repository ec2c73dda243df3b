"""Invert the teacher with a generator, one batch of images at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from engine.config.synthesize import SynthesizeConfig
from engine.config.views import Views
from engine.errors import NonFiniteError, more_precision
from engine.models.classifier import Classifier
from engine.models.generator import Generator, init_weights
from engine.models.inverting import choose_statistics
from engine.seeding import derive_seed, generator
from engine.stages.batch import ImageBatch
from engine.stages.inversion import Inversion
from engine.stages.labels import batch_labels
from engine.stages.statistics import measuring

Adversary = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps augmented images, labels and teacher logits to a scalar that is low if the student finds them hard."""


class Synthesizer:
    """Makes batches of images by inverting a teacher. State: the generator's weights and `needs_warmup`.

    Batch i draws its labels, z, crops and flips from (seed, i). With start `reinit` its images are a function
    of (seed, i); with `reuse` and `meta` they also depend on the batches before, unless made `independent`.
    """

    def __init__(
        self,
        teacher: Classifier,
        config: SynthesizeConfig,
        *,
        image_size: tuple[int, int],
        seed: int,
        accelerator: Accelerator,
        cuda_graph: bool = True,
        class_weights: Sequence[float] | None = None,
        views: Views | None = None,
    ) -> None:
        """Initialize the generator from the seed.

        Args:
            teacher: in eval mode.
            cuda_graph: see `Inversion`.
            class_weights: see `batch_labels`.
        """
        self.cuda_graph, self.class_weights, self.views = cuda_graph, class_weights, views
        self.teacher, self.config, self.seed, self.accelerator = teacher, config, seed, accelerator
        channels = 1 if teacher.is_grey else 3
        network = Generator(latent_dim=config.latent_dim, channels=channels, size=image_size)
        self.generator = network.to(accelerator.device).to(memory_format=torch.channels_last)
        init_weights(self.generator, generator(seed, "generator"))
        self.needs_warmup = config.first_steps > 0
        self._measured = None
        if config.w_bn > 0:
            self._measured = measuring(teacher, choose_statistics(teacher, config.statistics, image_size))
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
        """Make batch `index` of the run: `batch_size` images whose keys are multiples of `key_stride`.

        Args:
            independent: start from the warmed-up generator and restore it after, also after an error, so
                that the batch is a function of (seed, index) with any `start`.
            on_step: called with 1 after each step, those of a warm-up included.

        Raises:
            NonFiniteError: if no step has a finite loss; the message names the batch.
        """
        self.warm_up(on_step)
        start = self._start(index, independent)
        with self._restored_on_error(start):
            images, labels = self._invert(index, self.config.steps, adversary, on_step)
        self._move_towards_start(start, 0.0 if independent else self.config.meta_rate)
        keys = (index * self.config.batch_size + torch.arange(len(labels))) * key_stride
        return ImageBatch(
            images=images,
            labels=labels,
            keys=keys,
            parents=torch.full_like(keys, -1),
            seeds=torch.full_like(keys, derive_seed(self.seed, "synthesize", index)),
        )

    def warm_up(self, on_step: Callable[[int], None] | None = None) -> None:
        """Warm the generator up, if it still needs that; `batch` does so, too.

        Raises NonFiniteError as `batch` does.
        """
        if self.needs_warmup:
            with self._restored_on_error(self._weights()):
                self._invert(-1, self.config.first_steps, None, on_step)
            self.needs_warmup = False

    def _start(self, index: int, independent: bool) -> list[Tensor]:
        """Set the generator to a batch's start. Return the weights if `_move_towards_start` needs them."""
        if self.config.start == "reinit":
            init_weights(self.generator, generator(self.seed, "generator", index))
            return []
        if self.config.start == "reuse" and not independent:
            return []
        return self._weights()

    def _weights(self) -> list[Tensor]:
        return [value.detach().clone() for value in self.generator.state_dict().values()]

    @contextmanager
    def _restored_on_error(self, start: list[Tensor]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._move_towards_start(start, 0.0)
            raise

    @torch.no_grad()
    def _move_towards_start(self, start: list[Tensor], rate: float) -> None:
        """Set the weights to start + rate * (weights - start). Does nothing if `start` is empty."""
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
        """Optimize one batch: images uint8 [B, 3, H, W] and labels [B] on the CPU. Waits for the device."""
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
        """Return the inversion for `adversary`; the last one is reused if its adversary is the same."""
        if self._inversion is None or self._inversion[0] is not adversary:
            self._inversion = (
                None  # frees its optimizer, and the student's copy that the last adversary holds
            )
            inversion = Inversion(
                self.generator,
                lambda images, labels: self._loss(images, labels, adversary),
                batch_size=self.config.batch_size,
                latent_dim=self.config.latent_dim,
                lr=self.config.lr,
                accelerator=self.accelerator,
                cuda_graph=self.cuda_graph,
                views=self.views,
            )
            self._inversion = adversary, inversion
        return self._inversion[1]

    def _loss(self, grey_or_rgb: Tensor, labels: Tensor, adversary: Adversary | None) -> Tensor:
        config = self.config
        images = grey_or_rgb.expand(-1, 3, -1, -1)
        with self.accelerator.autocast():
            if self._measured is not None:
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
