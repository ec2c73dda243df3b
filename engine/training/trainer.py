"""The student's training on the images of banks: distiller, feed, progress and scalars in one."""

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from engine.bank.rows import Spans
from engine.config.distill import DistillConfig
from engine.config.recipe import Recipe
from engine.config.storage import Codec
from engine.curves import Curves
from engine.feed.index import Index
from engine.feed.open import open_feed
from engine.feed.sampler import Sampler
from engine.networks import OpenPair
from engine.progress import Progress
from engine.stages.distill import Distiller

logger = logging.getLogger(__name__)


class StudentTraining:
    """`add` images, then take `steps`; within steps of one `first_step` the images must stay the same.

    What decides the remaining steps is in `state_dict` and in the images; the feed has no state of its own.
    On several ranks each calls what the others call, and has its part of every batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        pair: OpenPair,
        accelerator: Accelerator,
        progress: Progress,
        scalars: Curves | None,
        *,
        codec: Codec,
        channels: int,
        shares: Sequence[float] | None = None,
    ) -> None:
        """`scalars` gets the logged means; `codec` and `channels` of the banks; `shares` of each batch from
        each bank, by default as all are.
        """
        self.config: DistillConfig = recipe.distill
        self.wanted = [weight > 0 for weight in recipe.class_weights or [1.0] * len(recipe.class_names)]
        self.seed, self.newest_share = recipe.seed, recipe.feed.newest
        self.progress, self.scalars, self.shares = progress, scalars, shares
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        size = recipe.teacher.image_size
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
        self.feed = open_feed(
            recipe.feed,
            self.index,
            codec=codec,
            image_size=(size, size),
            channels=channels,
            batch_size=recipe.distill.batch_size // self.world,
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
        """Steps taken so far."""
        return self.distiller.step

    def add(self, spans: Spans, *, bank: int = 0) -> range:
        """The images of one more shard of bank number `bank`; their rows in the index."""
        return self.index.add(spans, bank=bank)

    def warn_of_missing_classes(self) -> None:
        """Log how many classes of weight above 0 the images so far leave out, if any."""
        counts = np.bincount(self.index.labels(slice(None)), minlength=len(self.wanted))
        missing = int((np.array(self.wanted) & (counts == 0)).sum())
        if missing:
            logger.warning(
                f"the banks have no images of {missing:,} of {sum(self.wanted):,} classes,"
                " and the student learns nothing of them; add a bank with more shards"
            )

    def announce(self) -> None:
        """Tells the progress bar of the steps that are left."""
        left = self.distiller.total_steps - self.step
        self.progress.announce("distill", total=left * self.config.batch_size, unit="images")

    def steps(
        self,
        count: int,
        *,
        first_step: int,
        newest_rows: range | None = None,
        after_step: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        """`count` steps of those that began with `first_step` on the images that there are now.

        `newest_rows`: the rows of the index of which `feed.newest` of each batch is drawn.
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
            pad=self.config.crop_padding,
            flip=self.config.flip,
        )
        images_a_step = self.config.batch_size
        with self.progress.stage("distill", total=count * images_a_step, unit="images") as stage:
            previous = self.step

            def on_log(step: int, means: dict[str, float]) -> None:
                nonlocal previous
                stage.advance((step - previous) * images_a_step)
                stage.note(f"loss {means['loss']:.3f}")
                previous = step
                if self.scalars is not None:
                    for name, value in means.items():
                        self.scalars.add_scalar(f"distill/{name}", value, step)

            batches = self.feed.batches(sampler, self.step, self.step + count)
            self.distiller.train(batches, count, after_step=after_step, on_log=on_log)

    def state_dict(self) -> dict[str, Any]:
        return self.distiller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.distiller.load_state_dict(state)
