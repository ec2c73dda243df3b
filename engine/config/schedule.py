"""Settings of the rounds, and the order of synthesis and training."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from engine.config.checked import Checked


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Checked):
    """Some batches of synthesis, then rounds that add images that are hard for the student and train it."""

    init_batches: int = 3
    """Batches of sources before the first round, without the adversary."""
    rounds: int = 3
    """Number of rounds; each adds images that are hard for the current student, then trains the student."""
    batches_per_round: int = 1
    """Batches of sources in each round; 0 trains only on the images from before the first round."""
    kd_steps: int = 330
    """Training steps in each round."""
    checkpoint_steps: int = 500
    """Training steps between two checkpoints; each batch of images is also followed by one."""

    def faults(self) -> Iterator[str]:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0:
                yield f"schedule.{field.name} must be 0 or above, got {value}"
        for name in ("rounds", "kd_steps"):
            if getattr(self, name) == 0:
                yield f"schedule.{name} is 0, which leaves the student untrained; set it to 1 or more"
        if self.checkpoint_steps == 0:
            yield "schedule.checkpoint_steps is 0; set it to 1 or more"

    def contradictions(self) -> Iterator[str]:
        if self.init_batches + self.batches_per_round < 1:
            yield (
                "schedule.init_batches and schedule.batches_per_round are both 0, so there are no images;"
                " set schedule.init_batches to 1 or more"
            )

    @property
    def total_batches(self) -> int:
        """Batches of sources in the whole run."""
        return self.init_batches + self.rounds * self.batches_per_round

    @property
    def total_kd_steps(self) -> int:
        """Training steps in the whole run."""
        return self.rounds * self.kd_steps

    def next(self, batches: int, step: int) -> "Synthesis | Training | None":
        """Return what to do after `batches` batches of sources and `step` training steps; None at the end."""
        if step == self.total_kd_steps:
            return None
        round_number, done = divmod(step, self.kd_steps)
        if batches < self.init_batches + (round_number + 1) * self.batches_per_round:
            return Synthesis(batch=batches)
        return Training(
            round=round_number,
            first_step=step - done,
            steps=min(self.kd_steps - done, self.checkpoint_steps),
        )

    def first_batch_of(self, round_number: int) -> int:
        """Return the number of the first batch that is made in this round."""
        return self.init_batches + round_number * self.batches_per_round


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Make this batch of sources next."""

    batch: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """Train for `steps` steps of a round, whose first step is `first_step`."""

    round: int
    first_step: int
    steps: int
