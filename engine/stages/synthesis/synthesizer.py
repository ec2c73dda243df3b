"""Invert the teacher, one batch of images at a time."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.config.synthesize import SynthesizeConfig
from engine.config.views import Views
from engine.errors import NonFiniteError, UserError, more_precision
from engine.models.block_inverse import BlockInverse
from engine.models.classifier import Classifier
from engine.models.feature_map import maps_by_size
from engine.models.generator import Generator, NoisyGenerator, init_weights
from engine.models.pixels import Pixels
from engine.seeding import derive_seed, generator
from engine.stages.batch import ImageBatch
from engine.stages.labels import batch_labels
from engine.stages.synthesis.inversion import Inversion
from engine.stages.synthesis.objective import Adversary, Objective

RISING_STEPS = 10
LAST_RATE = 0.05
"""Share of the learning rate at which the cosine of a batch ends."""


class Synthesizer:
    """Makes batches of images by inverting a teacher; `state_dict` has what a batch hands to the next.

    Batch i draws its labels, z, crops and flips from (seed, i). With start `reinit` and no memory bank its
    images are a function of (seed, i); else they also depend on the batches before, unless made
    `independent`.
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
        class_embeddings: Tensor | None = None,
        views: Views | None = None,
    ) -> None:
        """Initialize the network that makes the images from the seed.

        Args:
            teacher: in eval mode.
            cuda_graph: see `Inversion`.
            class_weights: see `batch_labels`.
            class_embeddings: float [C, D] of the class names, for `noisy_layer`; random codes by default.
        """
        self.config, self.method = config, config.chosen
        self.cuda_graph, self.class_weights, self.views = cuda_graph, class_weights, views
        self.teacher, self.seed, self.accelerator = teacher, seed, accelerator
        self.network = _network(teacher, config, image_size, seed, class_embeddings)
        self.network.to(accelerator.device).to(memory_format=torch.channels_last)
        self._draw_weights(generator(seed, "generator"))
        self.needs_warmup = config.first_steps > 0
        self.objective = Objective(
            teacher, config, self.network, image_size=image_size, seed=seed, accelerator=accelerator
        )
        self._outer: torch.optim.Optimizer | None = None
        if self.method.start == "fomaml":
            rate = config.meta_rate * self.method.steps * self.method.lr
            self._outer = torch.optim.Adam(self.network.parameters(), rate, betas=(0.5, 0.999))
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
            independent: start from the warmed-up network and restore it after, also after an error, so
                that the batch is a function of (seed, index) with any `start`.
            on_step: called with 1 after each step, those of a warm-up included.

        Raises:
            NonFiniteError: if no step has a finite loss; the message names the batch.
        """
        self.warm_up(on_step)
        start = self._start(index, independent)
        with self._restored_on_error(start):
            images, labels = self._invert(index, adversary, on_step)
        if independent:
            self._set_weights(start)
        else:
            self._learn_start(start)
        keys = (index * self.config.batch_size + torch.arange(len(labels))) * key_stride
        return ImageBatch(
            images=images,
            labels=labels,
            keys=keys,
            parents=torch.full_like(keys, -1),
            seeds=torch.full_like(keys, derive_seed(self.seed, "synthesize", index)),
        )

    @property
    def agreement(self) -> float | None:
        """Share of the last step's views in which the teacher sees the label; None if it decides the labels.

        The images of the best step, without a crop or flip, may have another. Waits for the device.
        """
        return None if self.method.labels == "teacher" else self.objective.agreement.item()

    def warm_up(self, on_step: Callable[[int], None] | None = None) -> None:
        """Warm the network up, if it still needs that; `batch` does so, too.

        Each step draws other labels and z, so that the weights alone learn what an image needs. Raises
        NonFiniteError as `batch` does.
        """
        if not self.needs_warmup:
            return
        with self._restored_on_error(self._weights()):
            inversion = self.inversion(None)
            draw = generator(self.seed, "synthesize", -1)
            inversion.begin(*self._inputs(-1, draw), draw)
            for step in range(self.config.first_steps):
                if step > 0:
                    inversion.redraw(*self._inputs(-1 - step, draw))
                self._step(inversion, step, self.config.first_steps, on_step)
            self._require_finite(inversion, "the warm-up")
        self.needs_warmup = False

    def _start(self, index: int, independent: bool) -> list[Tensor]:
        """Set the network to a batch's start. Return the weights to go back to, if there are any."""
        if independent and self.objective.memory is not None:
            self.objective.memory.forget()
        if self.method.start == "reinit":
            self._draw_weights(generator(self.seed, "generator", index))
            return []
        kept = self._weights() if independent or self.method.start in ("meta", "fomaml") else []
        if self.method.start == "renew":
            entrance = self.network.entrance
            assert isinstance(entrance, nn.Module)
            init_weights(entrance, generator(self.seed, "generator", index))
        return kept

    def _draw_weights(self, rng: torch.Generator) -> None:
        if isinstance(self.network, Pixels):
            self.network.init_weights(rng)
        else:
            init_weights(self.network, rng)

    def _weights(self) -> list[Tensor]:
        return [value.detach().clone() for value in self.network.state_dict().values()]

    @contextmanager
    def _restored_on_error(self, start: list[Tensor]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._set_weights(start)
            raise

    @torch.no_grad()
    def _set_weights(self, start: list[Tensor], rate: float = 0.0) -> None:
        """Set the weights to start + rate * (weights - start). Does nothing if `start` is empty."""
        if not start:
            return
        for value, before in zip(self.network.state_dict().values(), start, strict=True):
            if rate == 0:
                value.copy_(before)
            elif value.is_floating_point():
                value.copy_(torch.lerp(before, value, rate))

    def _learn_start(self, start: list[Tensor]) -> None:
        """Move the initialization, for meta and fomaml, by what the last batch says."""
        if self.method.start == "meta":
            self._set_weights(start, self.config.meta_rate)
        elif self._outer is not None:
            self._set_weights(start)
            self._outer.step()  # along the gradients of the batch's last step

    def _inputs(self, number: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return z [B, latent_dim] and labels int64 [B] of a batch, whose number is negative in a warm-up."""
        labels = batch_labels(
            number,
            batch_size=self.config.batch_size,
            num_classes=self.teacher.num_classes,
            seed=self.seed,
            weights=self.class_weights,
        )
        return torch.randn(self.config.batch_size, self.config.latent_dim, generator=draw), labels

    def _invert(
        self, index: int, adversary: Adversary | None, on_step: Callable[[int], None] | None
    ) -> tuple[Tensor, Tensor]:
        """Optimize one batch: images uint8 [B, 3, H, W] and labels [B] on the CPU. Waits for the device."""
        draw = generator(self.seed, "synthesize", index)
        z, labels = self._inputs(index, draw)
        inversion = self.inversion(adversary)
        inversion.begin(z, labels, draw)
        steps, coarse = self.method.steps, self.method.coarse_steps
        for step in range(steps):
            if step in (0, coarse):
                inversion.set_coarse(step < coarse)
            self._step(inversion, step, steps, on_step)
        self._require_finite(inversion, f"the {steps} steps of batch {index}")
        assert inversion.best_images is not None
        self.objective.remember(inversion.best_images)
        pixels = (inversion.best_images * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        if self.method.labels == "teacher":
            labels = self._classes(pixels)
        return pixels.contiguous().cpu(), labels

    def _step(
        self, inversion: Inversion, step: int, steps: int, on_step: Callable[[int], None] | None
    ) -> None:
        """Take step `step` of `steps`: the learning rate rises, then falls with a cosine."""
        done = math.cos(math.pi * step / steps)
        rising = min(1.0, (step + 1) / min(RISING_STEPS, steps))
        inversion.set_rate(rising * (LAST_RATE + (1 - LAST_RATE) * (1 + done) / 2))
        self.network.train()
        inversion.step()
        if on_step is not None:
            on_step(1)

    def _require_finite(self, inversion: Inversion, where: str) -> None:
        if not inversion.best_loss.isfinite():
            advice = more_precision(
                self.accelerator.mixed_precision,
                "compute.precision",
                otherwise="lower synthesize.lr, or check teacher.weights",
            )
            raise NonFiniteError(f"synthesize: no finite loss in {where}; {advice}")

    @torch.no_grad()
    def _classes(self, images: Tensor) -> Tensor:
        """Return the teacher's top-1 of uint8 RGB images, int64 [B] on the CPU."""
        with self.accelerator.autocast():
            return self.teacher(images.float() / 255).argmax(1).cpu()

    def inversion(self, adversary: Adversary | None) -> Inversion:
        """Return the inversion for `adversary`; the last one is reused if its adversary is the same."""
        if self._inversion is None or self._inversion[0] is not adversary:
            self._inversion = (
                None  # frees its optimizer, and the student's copy that the last adversary holds
            )
            inversion = Inversion(
                self.network,
                lambda images, views, labels: self.objective(images, views, labels, adversary),
                batch_size=self.config.batch_size,
                latent_dim=self.config.latent_dim,
                lr=self.method.lr,
                accelerator=self.accelerator,
                cuda_graph=self.cuda_graph,
                views=self.views,
                shift=self.method.shift,
            )
            self._inversion = adversary, inversion
        return self._inversion[1]

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "needs_warmup": self.needs_warmup,
            "outer": None if self._outer is None else self._outer.state_dict(),
            "memory": None if self.objective.memory is None else self.objective.memory.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.needs_warmup = state["needs_warmup"]
        if self._outer is not None:
            self._outer.load_state_dict(state["outer"])
        if self.objective.memory is not None:
            self.objective.memory.load_state_dict(state["memory"])


def _network(
    teacher: Classifier,
    config: SynthesizeConfig,
    image_size: tuple[int, int],
    seed: int,
    class_embeddings: Tensor | None,
) -> nn.Module:
    """Return the network that makes the images of a batch, from z and labels."""
    channels, batch_size, latent_dim = 1 if teacher.is_grey else 3, config.batch_size, config.latent_dim
    if config.chosen.source == "pixels":
        return Pixels(batch_size=batch_size, channels=channels, size=image_size)
    sees_labels = config.chosen.source == "class_generator"
    network = Generator(
        latent_dim=latent_dim,
        channels=channels,
        size=image_size,
        num_classes=teacher.num_classes if sees_labels else None,
    )
    if config.chosen.source == "block_inverse":
        maps = maps_by_size(teacher, image_size)
        if not maps:
            raise UserError(
                f"synthesize.source is block_inverse, but {teacher.name} has no [B, C, H, W] feature maps; "
                "set it to generator, or choose another synthesize.method"
            )
        return BlockInverse(network, maps)
    if config.chosen.source == "noisy_layer":
        if class_embeddings is None:
            rng = generator(seed, "class-codes")
            class_embeddings = torch.randn(teacher.num_classes, latent_dim, generator=rng)
        return NoisyGenerator(network, class_embeddings, latent_dim=latent_dim, batch_size=batch_size)
    return network
