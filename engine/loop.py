"""The loop: synthesize, augment, filter and distill in rounds, then evaluate once on the test set."""

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
from engine.generation import stages
from engine.generation.provenance import bank_header, require_same_facts
from engine.generation.shard_generator import ShardGenerator
from engine.hardware import SharedCores
from engine.models.loading import require_feature
from engine.networks import OpenNetworks
from engine.progress import Progress, counted
from engine.runtime.torch import FusedClassifier
from engine.stages.labels import MORE_BATCHES, coverage_warning
from engine.stages.synthesis.adversary import RotationAdversary, kl_adversarial
from engine.stages.synthesis.synthesizer import Adversary
from engine.training import checkpoint, trainer
from engine.training.examples import Examples
from engine.training.run_folder import (
    BANK,
    CHECKPOINTS,
    SOURCES,
    TENSORBOARD,
    VARIATIONS,
    commit_config,
    lock_run,
    save_student,
)
from engine.training.run_record import RunRecord
from engine.training.source_grid import save_sources
from engine.training.summary import Summary, summarize
from engine.training.trainer import StudentTrainer

logger = logging.getLogger(__name__)


def run(
    recipe: Recipe, out: Path, *, resume: bool, progress: Progress, begun: float | None = None
) -> Summary:
    """Run the whole recipe in the folder `out`; with `resume`, continue from its last checkpoint.

    Shows the progress bars before it loads anything. `begun` is time.perf_counter() when the command began
    (default: now); the summary's time counts from there, plus the time of earlier commands.

    Writes config.yaml once everything has loaded, then tb/, bank/, checkpoints/, student.safetensors,
    variations.png or sources.png, and summary.json.

    Raises:
        UserError: for a mistake of the user.
        NonFiniteError: if a loss, an image or a similarity is NaN or Inf.
    """
    start = time.perf_counter() if begun is None else begun
    logger.info("%s: %s, %s", recipe.name, recipe.compute.device, recipe.compute.precision)
    if warning := coverage_warning(recipe, recipe.schedule.total_batches, MORE_BATCHES):
        logger.warning(warning)
    check_test_set(recipe.evaluate, recipe.names, recipe.teacher.size)
    with open_loop(recipe, out, resume=resume, progress=progress) as loop:
        earlier = loop.wall_seconds
        loop.announce()
        while (work := recipe.schedule.next(loop.batches, loop.trainer.step)) is not None:
            loop.do(work)
            loop.wall_seconds = earlier + time.perf_counter() - start
            loop.save(out / CHECKPOINTS)
        opened = loop.networks
        save_student(out, opened.student.network)
        if recipe.augment.method == "none":
            save_sources(out / SOURCES, loop.reader, recipe.names)
        else:
            loop.examples.save(out / VARIATIONS, recipe.names)
        summary = summarize(
            recipe,
            opened,
            opened.clip,
            [loop.reader],
            loop.accelerator,
            progress,
            loop.cores,
            start - earlier,
        )
        summary.write(out)
    return summary


@contextmanager
def open_loop(recipe: Recipe, out: Path, *, resume: bool, progress: Progress) -> Iterator["Loop"]:
    """Load the networks, and open or continue the run in the folder `out`. Raises UserError as `run` does."""
    accelerator = open_accelerator(recipe.compute)
    header, url = bank_header(recipe, of_run=True), str(out / BANK)
    if resume:
        _require_same_run(out, url, header)
    _announce(recipe, progress, batches=recipe.schedule.total_batches, steps=recipe.schedule.total_kd_steps)
    opened = networks.open(recipe, networks.load(recipe, accelerator.device), accelerator)
    with ExitStack() as stack:
        stack.enter_context(lock_run(out, resume=resume))
        state = checkpoint.load(out / CHECKPOINTS)
        shards = {} if state is None else state["shards"]
        commit_config(out, recipe, RunRecord.of(recipe, header.facts))
        bank = stack.enter_context(BankWriter.open(url, header, resume=resume, irreplaceable=shards))
        curves = stack.enter_context(Curves(str(out / TENSORBOARD)))
        reader = BankReader.open(url, verify=False)  # the writer has written or verified all shards
        require_snapshot(reader, url, shards)
        loop = stack.enter_context(Loop(recipe, opened, accelerator, progress, curves, bank, reader))
        loop.restore(state)
        yield loop


def _announce(recipe: Recipe, progress: Progress, *, batches: int, steps: int) -> None:
    """Announce batches of images and training steps to the progress bars."""
    stages.announce(progress, recipe, batches)
    trainer.announce(progress, recipe.distill, steps)


def _require_same_run(out: Path, url: str, header: Header) -> None:
    """Raise UserError if the run in `out` or its bank at `url` began with other weights or settings."""
    require_same_facts(RunRecord.read(out).weights, header.facts, whose=f"--out {out}")
    if open_storage(url).size(MANIFEST) is not None:
        require_same_settings(url, BankReader.open(url, verify=False).header, header)


class Loop:
    """The state of a run between two pieces of work of its schedule. The bank holds the images."""

    def __init__(
        self,
        recipe: Recipe,
        networks: OpenNetworks,
        accelerator: Accelerator,
        progress: Progress,
        curves: Curves,
        bank: BankWriter,
        reader: BankReader,
    ) -> None:
        self.recipe, self.networks, self.accelerator = recipe, networks, accelerator
        self.progress, self.curves = progress, curves
        self.bank, self.reader = bank, reader
        self.cores = SharedCores(recipe.compute)
        self.generator = ShardGenerator(recipe, networks, accelerator, progress, cores=self.cores)
        header = reader.header
        self.trainer = StudentTrainer(
            recipe,
            networks,
            accelerator,
            progress,
            curves,
            self.cores,
            codec=header.codec,
            channels=header.channels,
        )
        self.rotation = self._rotation() if recipe.synthesize.chosen.adversary == "selfsup" else None
        self.examples = Examples()
        self.agreements = Agreements()
        self._has_warned = False
        self.batches = 0
        self.wall_seconds = 0.0
        self._rows: list[range] = []  # rows of each batch in the feed's index
        self._adversary: tuple[int, Adversary] | None = None  # the student's step, and the one built for it

    def __enter__(self) -> "Loop":
        return self

    def __exit__(self, *error: Any) -> None:
        self.trainer.__exit__(*error)
        self.cores.__exit__(*error)

    def _rotation(self) -> RotationAdversary:
        require_feature(self.networks.student, "student")
        return RotationAdversary(
            self.networks.student, self.recipe.student.size, self.recipe.seed, self.accelerator
        )

    def announce(self) -> None:
        """Announce the remaining work to the progress bars and to the log."""
        schedule = self.recipe.schedule
        batches = schedule.total_batches - self.batches
        steps = schedule.total_kd_steps - self.trainer.step
        _announce(self.recipe, self.progress, batches=batches, steps=steps)
        to_do = counted(batches, "batch", "batches"), counted(steps, "training step", "training steps")
        logger.info("to do: %s of images, %s", *to_do)

    def do(self, work: Synthesis | Training) -> None:
        """Make a batch of images or train the student for some steps."""
        if isinstance(work, Synthesis):
            self._synthesize(work.batch)
        else:
            self._train(work)

    def _synthesize(self, batch: int) -> None:
        """Make batch number `batch`, commit it to the bank and add it to the training images."""
        modules = [self.networks.student, *([self.rotation.head] if self.rotation else [])]
        with _without_gradients(modules):
            generated = self.generator.make(batch, self._current_adversary())
        rows = generated.rows()
        entry = self.bank.commit(batch, rows, generated.kept_images())
        self.reader.refresh()
        if self.generator.views is not None and generated.outputs is not None:
            tar = entry.files[entry.names.tar].sha256
            self.bank.write_views(batch, self.generator.views.packed(tar, generated.outputs))
        self._add_to_training(batch)
        self._warn_once(Agreements.of(rows))
        if generated.variations is None or generated.result is None:
            return
        self.examples.add(generated.sources, generated.variations, generated.result)
        self.curves.add_scalar("filter/acceptance_rate", generated.result.kept.double().mean(), batch)
        self.curves.add_scalar("filter/label_agreement", generated.result.label_agreement, batch)
        self.curves.add_scalar("filter/kept_label_agreement", generated.result.kept_label_agreement, batch)

    def _warn_once(self, agreements: Agreements) -> None:
        """Log a warning as soon as there are enough images to tell that they do not show their labels."""
        self.agreements += agreements
        if not self._has_warned and (warning := self.agreements.warning):
            logger.warning(warning)
            self._has_warned = True

    def _add_to_training(self, batch: int) -> None:
        self._rows.append(self.trainer.add(self.reader, batch))
        self.batches = batch + 1

    def _current_adversary(self) -> Adversary | None:
        """Return the adversary for the current student, or None before its first step."""
        step = self.trainer.step
        if step == 0 or self.recipe.synthesize.chosen.adversary == "none":
            return None
        if self._adversary is None or self._adversary[0] != step:
            self._adversary = None  # before there is a second copy of the student
            self._adversary = step, self._new_adversary()
        return self._adversary[1]

    def _new_adversary(self) -> Adversary:
        if self.rotation is not None:
            term = self.rotation.adversarial_term()
            return lambda images, labels, _: term(images, labels)
        student = FusedClassifier(self.networks.student, [], self.accelerator)
        return lambda images, _, teacher_logits: kl_adversarial(
            student(images=images)["logits"], teacher_logits
        )

    def _train(self, work: Training) -> None:
        schedule = self.recipe.schedule
        head_is_used = work.round < schedule.rounds - 1 and schedule.batches_per_round > 0
        rotation = self.rotation if head_is_used else None
        if rotation is not None and self.trainer.step == work.first_step:
            rotation.restart(work.round)
        newest = self._rows[schedule.first_batch_of(work.round) :]
        self.trainer.train(
            work.steps,
            first_step=work.first_step,
            newest_rows=range(newest[0].start, newest[-1].stop) if newest else None,
            after_step=None if rotation is None else rotation.learn,
        )

    def save(self, folder: Path) -> None:
        """Save everything that decides the remaining work and the summary."""
        state: dict[str, Any] = {
            "batches": self.batches,
            "shards": snapshot(self.reader, range(self.batches)),
            "training": self.trainer.state_dict(),
            "synthesizer": self.generator.synthesizer.state_dict(),
            "rotation": None if self.rotation is None else self.rotation.state_dict(),
            "examples": self.examples.state_dict(),
            "seconds": dict(self.progress.seconds),
            "wall_seconds": self.wall_seconds,
        }
        checkpoint.save(folder, state)
        logger.debug("checkpoint after batch %d and step %d", self.batches, self.trainer.step)

    def restore(self, state: dict[str, Any] | None) -> None:
        """Restore what `save` saved; with None, empty the bank and start from the beginning."""
        batches = 0 if state is None else state["batches"]
        self.bank.keep_below(batches)
        self.reader.refresh()
        if state is None:
            return
        for batch in range(batches):
            self._add_to_training(batch)
        self.trainer.load_state_dict(state["training"])
        self.generator.synthesizer.load_state_dict(state["synthesizer"])
        if self.rotation is not None:
            self.rotation.load_state_dict(state["rotation"])
        self.examples.load_state_dict(state["examples"])
        self.progress.seconds.update(state["seconds"])
        self.wall_seconds = state["wall_seconds"]


@contextmanager
def _without_gradients(modules: list[nn.Module]) -> Iterator[None]:
    """Disable the gradients of these weights while the generator is optimized through them."""
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(True)
