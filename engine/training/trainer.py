"""Train a student on the images of banks: connect distiller, feed, progress and curves."""

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from engine.bank.reader import BankReader
from engine.config.distill import DistillConfig
from engine.config.recipe import Recipe
from engine.config.storage import Codec
from engine.curves import Curves
from engine.feed.index import Index
from engine.feed.open import open_feed
from engine.feed.sampler import Sampler
from engine.generation.views import ViewStore
from engine.hardware import SharedCores
from engine.networks import OpenPair
from engine.progress import Progress
from engine.stages.distill import Distiller

logger = logging.getLogger(__name__)


class StudentTrainer:
    """Trains a student: `add` shards, then `train`.

    `state_dict` and the images decide the remaining steps; the feed has no state. With several ranks, all
    must make the same calls, and each gets its part of every batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        pair: OpenPair,
        accelerator: Accelerator,
        progress: Progress,
        curves: Curves | None,
        cores: SharedCores,
        *,
        codec: Codec,
        channels: int,
        shares: Sequence[float] | None = None,
    ) -> None:
        """Build the distiller and open the feed.

        Args:
            curves: get the logged means.
            cores: leaves cores to other processes between steps.
            codec: of the images in the banks.
            channels: of the images in the banks.
            shares: of each bank in a batch; None for shares by their sizes.
        """
        self.config: DistillConfig = recipe.distill
        self.has_weight = [weight > 0 for weight in recipe.class_weights or [1.0] * len(recipe.names)]
        self.seed, self.newest_share = recipe.seed, recipe.feed.newest
        self.progress, self.curves, self.cores, self.shares = progress, curves, cores, shares
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        size = recipe.teacher.size
        self.distiller = Distiller(
            pair.teacher,
            pair.student,
            recipe.distill,
            recipe.schedule.total_kd_steps,
            recipe.seed,
            accelerator,
            image_size=size,
            teacher_forward=pair.teacher_forward,
        )
        self.index = Index()
        self.views = ViewStore(recipe, pair, accelerator.device, progress) if recipe.stored_views else None
        has_partners = recipe.stored_views is not None and recipe.distill.mixup > 0
        self.feed = open_feed(
            recipe.feed,
            self.index,
            codec=codec,
            image_size=size,
            channels=channels,
            batch_size=recipe.distill.batch_size // self.world * (2 if has_partners else 1),
            device=accelerator.device,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.feed.close()

    @property
    def step(self) -> int:
        """Number of steps taken so far."""
        return self.distiller.step

    def add(self, reader: BankReader, number: int, *, bank: int = 0) -> range:
        """Add the images of a shard of bank number `bank`; return their rows in the index.

        If the recipe stores views, make the shard's if they are missing. Raises as `ViewStore.of_shard`.
        """
        views = None if self.views is None else self.views.of_shard(reader, number)
        return self.index.add(reader.spans(number), bank=bank, views=views)

    def warn_of_missing_classes(self) -> None:
        """Log a warning if classes of weight above 0 have no images yet."""
        counts = np.bincount(self.index.labels(slice(None)), minlength=len(self.has_weight))
        missing = int((np.array(self.has_weight) & (counts == 0)).sum())
        if missing:
            logger.warning(
                f"the banks have no images of {missing:,} of {sum(self.has_weight):,} classes,"
                " and the student learns nothing of them; add a bank with more shards"
            )

    def announce(self) -> None:
        """Announce the remaining steps to the progress bar."""
        announce(self.progress, self.config, self.distiller.total_steps - self.step)

    def train(
        self,
        count: int,
        *,
        first_step: int,
        newest_rows: range | None = None,
        after_step: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        """Take `count` steps on the images added so far.

        Args:
            first_step: step at which training on the current images began; their order depends on it.
            newest_rows: rows of the index from which the share `feed.newest` of each batch is drawn.
            after_step: see `Distiller.train`.
        """
        sampler = Sampler(
            self.index,
            batch_size=self.config.batch_size,
            seed=self.seed,
            class_balance=self.config.class_balance,
            first_step=first_step,
            weights=self.shares,
            newest_rows=newest_rows,
            newest=self.newest_share,
            rank=self.rank,
            world=self.world,
            views=self.config.views_of(self.seed),
            unmixed_from=self.config.mixed_steps(self.distiller.total_steps),
        )
        batch_size = self.config.batch_size
        with self.progress.stage("distill", total=count * batch_size, unit="images") as stage:
            previous = self.step

            def on_log(step: int, means: dict[str, float]) -> None:
                nonlocal previous
                stage.advance((step - previous) * batch_size)
                stage.note(f"loss {means['loss']:.3f}")
                previous = step
                if self.curves is not None:
                    for name, value in means.items():
                        self.curves.add_scalar(f"distill/{name}", value, step)

            def between_steps(images: Tensor, labels: Tensor) -> None:
                self.cores.adjust()
                if after_step is not None:
                    after_step(images, labels)

            batches = self.feed.batches(sampler, self.step, self.step + count)
            self.distiller.train(batches, count, after_step=between_steps, on_log=on_log)

    def state_dict(self) -> dict[str, Any]:
        return self.distiller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.distiller.load_state_dict(state)


def announce(progress: Progress, config: DistillConfig, steps: int) -> None:
    """Announce training steps to the progress bar."""
    progress.announce("distill", total=steps * config.batch_size, unit="images")
