"""The loop: synthesize, augment, filter, distill, in rounds; then one look at the test set."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from engine import checkpoint
from engine.assembly import Assembly, assemble
from engine.batch import ImageBatch
from engine.compute import open_accelerator
from engine.datasets.config import check_test_set
from engine.files import replacing
from engine.memory_bank import Bank
from engine.models.frozen import frozen
from engine.models.loading import require_feature
from engine.progress import Progress
from engine.recipe import CONFIG, Recipe, to_yaml
from engine.report.examples import Examples
from engine.report.summarize import summarize
from engine.report.summary import Summary
from engine.report.verdicts import Verdicts
from engine.stages.augment import augment
from engine.stages.distill import Distiller
from engine.stages.filter import classify, judge
from engine.stages.kd_loss import kl_adversarial
from engine.stages.rotation import RotationAdversary
from engine.stages.synthesize import Adversary, Synthesizer
from engine.tally import Tally


def run(recipe: Recipe, out: Path, *, resume: bool, progress: Progress) -> Summary:
    """The whole recipe into the folder `out`; with `resume` from its last checkpoint.

    Writes config.yaml once everything has loaded, then tb/, checkpoints/, student.safetensors,
    variations.safetensors, variations.png and summary.json. Raises UserError for what the user can mend and
    NonFiniteError where numbers break.
    """
    start = time.perf_counter()
    accelerator = open_accelerator(recipe.compute)
    progress.say(f"{recipe.name}: {accelerator.device.type}, {recipe.compute.precision}")
    check_test_set(recipe.evaluate)
    parts = assemble(recipe, accelerator, progress.say)
    with replacing(out / CONFIG) as temporary:
        temporary.write_text(to_yaml(recipe))
    with SummaryWriter(str(out / "tb")) as scalars:
        loop = Loop(recipe, parts, accelerator, progress, scalars)
        first = loop.restore(out / "checkpoints") if resume else 0
        earlier = loop.tally.wall_seconds
        loop.announce(first)
        for phase in range(first, recipe.schedule.init_batches + recipe.schedule.rounds):
            loop.phase(phase)
            loop.tally.wall_seconds = earlier + time.perf_counter() - start
            loop.save(out / "checkpoints", phase)
        _save_student(out, parts.student.network)
        loop.verdicts.save(out / "variations.safetensors")
        loop.examples.save(out / "variations.png", recipe.class_names)
        summary = summarize(recipe, parts, loop.bank, loop.tally, accelerator, progress, start - earlier)
    summary.write(out)
    return summary


class Loop:
    """The state of a run between phases: first one for each initial batch, then one for each round."""

    def __init__(
        self,
        recipe: Recipe,
        parts: Assembly,
        accelerator: Accelerator,
        progress: Progress,
        scalars: SummaryWriter,
    ) -> None:
        self.recipe, self.parts, self.accelerator = recipe, parts, accelerator
        self.progress, self.scalars = progress, scalars
        size = recipe.teacher.image_size
        self.bank = Bank(len(recipe.class_names), (3, size, size))
        self.tally = Tally()
        self.verdicts = Verdicts()
        self.examples = Examples()
        self.distiller = Distiller(
            parts.teacher,
            parts.student,
            recipe.distill,
            recipe.schedule.total_kd_steps,
            recipe.seed,
            accelerator,
            image_size=size,
            ask_teacher=parts.ask_teacher,
        )
        self.synthesizer = Synthesizer(
            parts.teacher,
            recipe.synthesize,
            image_size=size,
            seed=recipe.seed,
            accelerator=accelerator,
            captured=recipe.compute.cuda_graphs,
        )
        self.rotation = self._rotation() if recipe.synthesize.adversary == "selfsup" else None

    def _rotation(self) -> RotationAdversary:
        require_feature(self.parts.student, "student")
        return RotationAdversary(
            self.parts.student, self.recipe.student.image_size, self.recipe.seed, self.accelerator
        )

    def announce(self, first: int) -> None:
        """Tells the progress bars how much there is from phase `first` on."""
        schedule, config = self.recipe.schedule, self.recipe.synthesize
        initial = max(schedule.init_batches - first, 0)
        rounds = schedule.rounds - max(first - schedule.init_batches, 0)
        sources = (initial + rounds * schedule.batches_per_round) * config.batch_size
        self.progress.announce("synthesize", total=sources, unit="images")
        if self.parts.prior is not None:
            variations = sources * self.recipe.augment.variations
            self.progress.announce("augment", total=variations, unit="images")
            self.progress.announce("filter", total=variations, unit="images")
        images = rounds * schedule.kd_steps * self.recipe.distill.batch_size
        self.progress.announce("distill", total=images, unit="images")

    def phase(self, number: int) -> None:
        """An initial batch of images; or a round: images hard for the student, then its training."""
        schedule = self.recipe.schedule
        if number < schedule.init_batches:
            self._grow(range(number, number + 1))
            return
        number -= schedule.init_batches
        first = schedule.init_batches + number * schedule.batches_per_round
        self._grow(range(first, first + schedule.batches_per_round))
        head_is_used = number < schedule.rounds - 1 and schedule.batches_per_round > 0
        rotation = self.rotation if head_is_used else None
        if rotation is not None:
            rotation.restart(number)
        images_a_step = self.recipe.distill.batch_size
        with self.progress.stage("distill", total=schedule.kd_steps * images_a_step, unit="images") as stage:
            previous = self.distiller.step

            def on_log(step: int, means: dict[str, float]) -> None:
                nonlocal previous
                stage.advance((step - previous) * images_a_step)
                stage.note(f"loss {means['loss']:.3f}")
                previous = step
                for name, value in means.items():
                    self.scalars.add_scalar(f"distill/{name}", value, step)

            learn = None if rotation is None else rotation.learn
            self.distiller.train(self.bank, schedule.kd_steps, after_step=learn, on_log=on_log)

    def _grow(self, batches: range) -> None:
        """Synthesizes, augments and filters the numbered batches, and adds what is kept to the bank."""
        adversary = self._adversary()
        for index in batches:
            sources = self._synthesize(index, adversary)
            micro_batch = self.recipe.filter.micro_batch
            top1, _ = classify(sources.images, self.parts.ask_teacher, micro_batch, self.accelerator.device)
            self.bank.add(sources, top1)
            self.tally.synthesized += len(sources)
            self.tally.synthesized_agreeing += int((top1 == sources.labels).sum())
            if self.parts.prior is not None:
                self._filter(index, sources, self._augment(sources))

    def _synthesize(self, index: int, adversary: Adversary | None) -> ImageBatch:
        config = self.recipe.synthesize
        steps = config.steps + (config.warmup_steps if self.synthesizer.needs_warmup else 0)
        taken = 0
        with self.progress.stage("synthesize", total=config.batch_size, unit="images") as stage:

            def on_step(count: int) -> None:
                nonlocal taken
                shown = config.batch_size * taken // steps
                taken += count
                stage.advance(config.batch_size * taken // steps - shown)

            trained = [self.parts.student, *([self.rotation.head] if self.rotation else [])]
            with _without_gradients(trained):
                return self.synthesizer.batch(
                    index,
                    key_stride=self.recipe.augment.variations + 1,
                    adversary=adversary,
                    on_step=on_step,
                )

    def _adversary(self) -> Adversary | None:
        """None until the student has learned something."""
        if self.distiller.step == 0 or self.recipe.synthesize.adversary == "none":
            return None
        if self.rotation is not None:
            challenge = self.rotation.challenger()
            return lambda images, labels, _: challenge(images, labels)
        student = frozen(self.parts.student, [], self.accelerator)
        return lambda images, _, teacher_logits: kl_adversarial(student(images)[0], teacher_logits)

    def _augment(self, sources: ImageBatch) -> ImageBatch:
        config, parts = self.recipe.augment, self.parts
        assert parts.prior is not None
        made = []
        with self.progress.stage("augment", total=len(sources) * config.variations, unit="images") as stage:
            for batch in augment(
                sources,
                parts.prior,
                config,
                seed=self.recipe.seed,
                class_tokens=parts.class_tokens,
                device=self.accelerator.device,
            ):
                made.append(batch)
                stage.advance(len(batch))
        return ImageBatch.cat(made)

    def _filter(self, index: int, sources: ImageBatch, variations: ImageBatch) -> None:
        with self.progress.stage("filter", total=len(variations), unit="images") as stage:
            verdict = judge(
                sources,
                variations,
                self.parts.clip,
                self.parts.ask_teacher,
                self.recipe.filter,
                self.accelerator.device,
            )
            self.bank.add(variations[verdict.kept], verdict.teacher_top1[verdict.kept])
            self.tally.add(verdict)
            self.verdicts.add(variations, verdict)
            self.examples.add(sources, variations, verdict)
            stage.advance(len(variations))
            stage.note(f"kept {self.tally.acceptance_rate or 0:.0%}")
        self.scalars.add_scalar("filter/acceptance_rate", verdict.kept.double().mean(), index)
        self.scalars.add_scalar("filter/label_agreement", verdict.label_agreement, index)
        self.scalars.add_scalar("filter/kept_label_agreement", verdict.kept_label_agreement, index)

    def save(self, folder: Path, phase: int) -> None:
        """Commits everything that decides the remaining phases and the summary."""
        state: dict[str, Any] = {
            "distiller": self.distiller.state_dict(),
            "synthesizer": self.synthesizer.state_dict(),
            "rotation": None if self.rotation is None else self.rotation.state_dict(),
            "tally": asdict(self.tally),
            "verdicts": self.verdicts.columns(),
            "examples": self.examples.state_dict(),
            "seconds": dict(self.progress.seconds),
        }
        checkpoint.save(folder, phase, state, self.bank)

    def restore(self, folder: Path) -> int:
        """Back to the last commit in `folder`; returns the phase to go on with, 0 where there is none."""
        found = checkpoint.load(folder)
        if found is None:
            return 0
        state, self.bank = found
        self.distiller.load_state_dict(state["distiller"])
        self.synthesizer.load_state_dict(state["synthesizer"])
        if self.rotation is not None:
            self.rotation.load_state_dict(state["rotation"])
        self.tally = Tally(**state["tally"])
        self.verdicts = Verdicts([state["verdicts"]])
        self.examples.load_state_dict(state["examples"])
        self.progress.seconds.update(state["seconds"])
        return int(state["phase"]) + 1


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


def _save_student(out: Path, network: nn.Module) -> None:
    state = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
    with replacing(out / "student.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
