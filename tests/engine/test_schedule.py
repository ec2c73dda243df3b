"""Totals of a schedule, and schedules that would train nothing."""

import pytest

from engine.errors import UserError
from engine.schedule import ScheduleConfig


def test_totals() -> None:
    schedule = ScheduleConfig(init_batches=3, rounds=4, batches_per_round=2, kd_steps=50)
    assert (schedule.total_batches, schedule.total_kd_steps) == (11, 200)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("schedule.rounds", {"rounds": 0}),
        ("schedule.kd_steps", {"kd_steps": 0}),
        ("schedule.init_batches", {"init_batches": 0, "batches_per_round": 0}),
        ("schedule.batches_per_round", {"batches_per_round": -1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_schedule_that_trains_nothing_is_refused(field: str, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=field):
        ScheduleConfig(**options)
