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
