"""Totals of a schedule."""

from engine.schedule import ScheduleConfig


def test_totals() -> None:
    schedule = ScheduleConfig(init_batches=3, rounds=4, batches_per_round=2, kd_steps=50)
    assert (schedule.total_batches, schedule.total_kd_steps) == (11, 200)


def test_a_schedule_without_rounds_synthesizes_only() -> None:
    schedule = ScheduleConfig(init_batches=3, rounds=0, batches_per_round=2, kd_steps=50)
    assert (schedule.total_batches, schedule.total_kd_steps) == (3, 0)
