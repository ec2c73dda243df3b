"""How much of each kind of work a run does, and in which order."""

from dataclasses import dataclass, fields

from engine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """`init_batches` of synthesis, then rounds: more images, hard for the student, then its training."""

    init_batches: int = 10
    """Batches synthesized before the first round, without the adversarial term."""
    rounds: int = 10
    """Rounds; each adds images that are hard for the current student, then trains the student."""
    batches_per_round: int = 1
    """Batches synthesized in each round; 0 trains on the first images alone."""
    kd_steps: int = 200
    """Steps of student training in each round."""
    checkpoint_steps: int = 500
    """Steps of student training between two checkpoints; there is one after each batch of images, too."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0:
                raise UserError(f"schedule.{field.name} must not be negative, got {value}")
        for name in ("rounds", "kd_steps"):
            if getattr(self, name) == 0:
                raise UserError(
                    f"schedule.{name} is 0, which leaves the student untrained; set it to 1 or more"
                )
        if self.checkpoint_steps == 0:
            raise UserError("schedule.checkpoint_steps is 0; set it to 1 or more")
        if self.init_batches + self.batches_per_round < 1:
            raise UserError(
                "schedule.init_batches and schedule.batches_per_round are both 0, nothing to train on;"
                " set schedule.init_batches to 1 or more"
            )

    @property
    def total_batches(self) -> int:
        """Batches synthesized in the whole run."""
        return self.init_batches + self.rounds * self.batches_per_round

    @property
    def total_kd_steps(self) -> int:
        """Steps of student training in the whole run."""
        return self.rounds * self.kd_steps

    def next(self, batches: int, step: int) -> "Synthesis | Training | None":
        """What comes after so many batches of images and steps of training; None at the end."""
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
        """The first of the batches that were made for this round."""
        return self.init_batches + round_number * self.batches_per_round


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """A batch of images to make."""

    batch: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """So many steps of a round, which began with `first_step`."""

    round: int
    first_step: int
    steps: int
