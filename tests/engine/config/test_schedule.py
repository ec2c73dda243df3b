"""Totals and order of a schedule, and schedules that would train nothing."""

import pytest

from engine.config.schedule import ScheduleConfig, Synthesis, Training
from engine.errors import UserError


def test_totals() -> None:
    schedule = ScheduleConfig(init_batches=3, rounds=4, batches_per_round=2, kd_steps=50)
    assert (schedule.total_batches, schedule.total_kd_steps) == (11, 200)


def test_the_work_from_the_first_batch_to_the_last_step() -> None:
    schedule = ScheduleConfig(init_batches=2, rounds=2, batches_per_round=1, kd_steps=5, checkpoint_steps=3)
    batches, step, done = 0, 0, []
    while (work := schedule.next(batches, step)) is not None:
        done.append(work)
        if isinstance(work, Synthesis):
            batches += 1
        else:
            step += work.steps
    assert done == [
        *(Synthesis(batch=batch) for batch in range(3)),
        Training(round=0, first_step=0, steps=3),
        Training(round=0, first_step=0, steps=2),
        Synthesis(batch=3),
        Training(round=1, first_step=5, steps=3),
        Training(round=1, first_step=5, steps=2),
    ]
    assert (batches, step) == (schedule.total_batches, schedule.total_kd_steps)
    assert [schedule.first_batch_of(number) for number in range(2)] == [2, 3]


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("schedule.rounds", {"rounds": 0}),
        ("schedule.kd_steps", {"kd_steps": 0}),
        ("schedule.checkpoint_steps", {"checkpoint_steps": 0}),
        ("schedule.init_batches", {"init_batches": 0, "batches_per_round": 0}),
        ("schedule.batches_per_round", {"batches_per_round": -1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_schedule_that_trains_nothing_is_refused(field: str, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=field):
        ScheduleConfig(**options)
