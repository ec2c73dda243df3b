"""The loop: synthesize, augment, filter, distill, in rounds; then one look at the test set."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from engine import networks
from engine.bank.agreement import Agreements
from engine.bank.manifest import MANIFEST, Header, require_same_settings
from engine.bank.reader import BankReader, require_snapshot, snapshot
from engine.bank.storage import open_storage
from engine.bank.writer import BankWriter
from engine.config.recipe import Recipe
from engine.config.schedule import Synthesis, Training
from engine.curves import Curves
from engine.datasets.test_set import check_test_set
from engine.distributed import open_accelerator
from engine.generation.provenance import bank_header, require_same_facts
from engine.generation.shard_generator import ShardGenerator
from engine.models.loading import require_feature
from engine.networks import OpenNetworks
from engine.progress import Progress
from engine.runtime.torch import FusedClassifier
from engine.stages.adversary import RotationAdversary, kl_adversarial
from engine.stages.labels import MORE_BATCHES, coverage_warning
from engine.stages.synthesize import Adversary
from engine.training import checkpoint
from engine.training.examples import Examples
from engine.training.run_folder import (
    BANK,
    CHECKPOINTS,
    SCALARS,
    VARIATIONS,
    alone,
    commit_config,
    save_student,
)
from engine.training.run_record import RunRecord
from engine.training.summary import Summary, summarize
from engine.training.trainer import StudentTraining

logger = logging.getLogger(__name__)


def run(recipe: Recipe, out: Path, *, resume: bool, progress: Progress) -> Summary:
    """The whole recipe into the folder `out`; with `resume` from its last checkpoint.

    Writes config.yaml once everything has loaded, then tb/, bank/, checkpoints/, student.safetensors,
    variations.png and summary.json. Raises UserError for what the user can mend and NonFiniteError where
    numbers break.
    """
    start = time.perf_counter()
    accelerator = open_accelerator(recipe.compute)
    logger.info("%s: %s, %s", recipe.name, accelerator.device.type, recipe.compute.precision)
    if warning := coverage_warning(recipe, recipe.schedule.total_batches, MORE_BATCHES):
        logger.warning(warning)
    check_test_set(recipe.evaluate)
    header, url = bank_header(recipe, of_run=True), str(out / BANK)
    if resume:
        _require_same_run(out, url, header)
    parts = networks.open(recipe, networks.load(recipe, accelerator.device), accelerator)
    with ExitStack() as stack:
        stack.enter_context(alone(out, resume=resume))
        state = checkpoint.load(out / CHECKPOINTS)
        trained = {} if state is None else state["shards"]
        commit_config(out, recipe, RunRecord.of(recipe, header.facts))
        bank = stack.enter_context(BankWriter.open(url, header, resume=resume, irreplaceable=trained))
        scalars = stack.enter_context(Curves(str(out / SCALARS)))
        reader = BankReader.open(url, verify=False)  # what it reads, the writer wrote or verified
        require_snapshot(reader, url, trained)
        loop = stack.enter_context(Loop(recipe, parts, accelerator, progress, scalars, bank, reader))
        loop.restore(state)
        earlier = loop.wall_seconds
        loop.announce()
        while (work := recipe.schedule.next(loop.batches, loop.training.step)) is not None:
            loop.do(work)
            loop.wall_seconds = earlier + time.perf_counter() - start
            loop.save(out / CHECKPOINTS)
        save_student(out, parts.student.network)
        loop.examples.save(out / VARIATIONS, recipe.class_names)
        summary = summarize(recipe, parts, parts.clip, [reader], accelerator, progress, start - earlier)
        summary.write(out)
    return summary


def _require_same_run(out: Path, url: str, header: Header) -> None:
    """Refuse other weights or settings than those that the run in `out` and its bank at `url` began with."""
    require_same_facts(RunRecord.read(out).weights, header.facts, whose=f"--out {out}")
    if open_storage(url).size(MANIFEST) is not None:
        require_same_settings(url, BankReader.open(url, verify=False).header, header)


class Loop:
    """The state of a run between two pieces of its schedule; the bank holds the images."""

    def __init__(
        self,
        recipe: Recipe,
        parts: OpenNetworks,
        accelerator: Accelerator,
        progress: Progress,
        scalars: Curves,
        bank: BankWriter,
        reader: BankReader,
    ) -> None:
        self.recipe, self.parts, self.accelerator = recipe, parts, accelerator
        self.progress, self.scalars, self.bank = progress, scalars, bank
        self.reader = reader
        self.generator = ShardGenerator(recipe, parts, accelerator, progress)
        header = reader.header
        self.training = StudentTraining(
            recipe, parts, accelerator, progress, scalars, codec=header.codec, channels=header.channels
        )
        self.rotation = self._rotation() if recipe.synthesize.adversary == "selfsup" else None
        self.examples = Examples()
        self.agreements = Agreements()
        self._has_warned = False
        self.batches = 0
        self.wall_seconds = 0.0
        self._rows: list[range] = []  # of each batch, in the feed's index
        self._challenge: tuple[int, Adversary] | None = None  # with the step of its student

    def __enter__(self) -> "Loop":
        return self

    def __exit__(self, *error: Any) -> None:
        self.training.__exit__(*error)

    def _rotation(self) -> RotationAdversary:
        require_feature(self.parts.student, "student")
        return RotationAdversary(
            self.parts.student, self.recipe.student.image_size, self.recipe.seed, self.accelerator
        )

    def announce(self) -> None:
        """Tells the progress bars how much is left."""
        self.generator.announce(self.recipe.schedule.total_batches - self.batches)
        self.training.announce()

    def do(self, work: Synthesis | Training) -> None:
        """A batch of images, hard for the student once it has learned something; or steps of its training."""
        if isinstance(work, Synthesis):
            self._grow(work.batch)
        else:
            self._train(work)

    def _grow(self, batch: int) -> None:
        """Makes the numbered batch and commits it to the bank."""
        trained = [self.parts.student, *([self.rotation.head] if self.rotation else [])]
        with _without_gradients(trained):
            generated = self.generator.make(batch, self._adversary())
        rows = generated.rows()
        self.bank.commit(batch, rows, generated.kept_images())
        self.reader.refresh()
        self._feed(batch)
        self._warn(Agreements.of(rows))
        if generated.variations is None or generated.result is None:
            return
        self.examples.add(generated.sources, generated.variations, generated.result)
        self.scalars.add_scalar("filter/acceptance_rate", generated.result.kept.double().mean(), batch)
        self.scalars.add_scalar("filter/label_agreement", generated.result.label_agreement, batch)
        self.scalars.add_scalar("filter/kept_label_agreement", generated.result.kept_label_agreement, batch)

    def _warn(self, agreements: Agreements) -> None:
        """As soon as there are enough images to know that they are none of their labels, and once."""
        self.agreements += agreements
        if not self._has_warned and (warning := self.agreements.warning):
            logger.warning(warning)
            self._has_warned = True

    def _feed(self, batch: int) -> None:
        self._rows.append(self.training.add(self.reader.spans(batch)))
        self.batches = batch + 1

    def _adversary(self) -> Adversary | None:
        """None until the student has learned something."""
        step = self.training.step
        if step == 0 or self.recipe.synthesize.adversary == "none":
            return None
        if self._challenge is None or self._challenge[0] != step:
            self._challenge = step, self._challenge_of_student()
        return self._challenge[1]

    def _challenge_of_student(self) -> Adversary:
        if self.rotation is not None:
            challenge = self.rotation.challenger()
            return lambda images, labels, _: challenge(images, labels)
        student = FusedClassifier(self.parts.student, [], self.accelerator)
        return lambda images, _, teacher_logits: kl_adversarial(
            student(images=images)["logits"], teacher_logits
        )

    def _train(self, work: Training) -> None:
        schedule = self.recipe.schedule
        head_is_used = work.round < schedule.rounds - 1 and schedule.batches_per_round > 0
        rotation = self.rotation if head_is_used else None
        if rotation is not None and self.training.step == work.first_step:
            rotation.restart(work.round)
        newest = self._rows[schedule.first_batch_of(work.round) :]
        self.training.steps(
            work.steps,
            first_step=work.first_step,
            newest_rows=range(newest[0].start, newest[-1].stop) if newest else None,
            after_step=None if rotation is None else rotation.learn,
        )

    def save(self, folder: Path) -> None:
        """Commits everything that decides the remaining work and the summary."""
        state: dict[str, Any] = {
            "batches": self.batches,
            "shards": snapshot(self.reader, range(self.batches)),
            "training": self.training.state_dict(),
            "synthesizer": self.generator.synthesizer.state_dict(),
            "rotation": None if self.rotation is None else self.rotation.state_dict(),
            "examples": self.examples.state_dict(),
            "seconds": dict(self.progress.seconds),
            "wall_seconds": self.wall_seconds,
        }
        checkpoint.save(folder, state)
        logger.debug("checkpoint after batch %d and step %d", self.batches, self.training.step)

    def restore(self, state: dict[str, Any] | None) -> None:
        """Back to what `save` committed; to the beginning where that is nothing."""
        done = 0 if state is None else state["batches"]
        self.bank.keep_below(done)
        self.reader.refresh()
        if state is None:
            return
        for batch in range(done):
            self._feed(batch)
        self.training.load_state_dict(state["training"])
        self.generator.synthesizer.load_state_dict(state["synthesizer"])
        if self.rotation is not None:
            self.rotation.load_state_dict(state["rotation"])
        self.examples.load_state_dict(state["examples"])
        self.progress.seconds.update(state["seconds"])
        self.wall_seconds = state["wall_seconds"]


@contextmanager
def _without_gradients(modules: list[nn.Module]) -> Iterator[None]:
    """No gradients into these weights, and none kept, while the generator is trained through them."""
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(True)
