"""A budget becomes counts: they fill the time at the measured costs, and a run of a budget keeps it."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from engine.cli.budget import Costs, as_budget, fitted_to, least, measure, parse_budget, with_batches
from engine.cli.main import main
from engine.cli.resolve import resolve
from engine.config.recipe import Recipe
from engine.errors import UserError
from engine.loop import Loop
from engine.recipes.load import load_recipe
from engine.run import command as run
from tests.commands import CommandServer

COSTS = Costs(opening=3.0, synthesis_step=0.1, hard_step=0.2, batch=0.5, kd_step=0.05, ending=2.0)


def seconds_of(recipe: Recipe, costs: Costs) -> float:
    """Return what the counts of a recipe take at these costs, added up piece by piece."""
    schedule, steps = recipe.schedule, recipe.synthesize.steps
    total = recipe.synthesize.first_steps * costs.synthesis_step
    for batch in range(schedule.total_batches):
        is_hard = batch >= schedule.init_batches + schedule.batches_per_round  # the first round trains later
        total += costs.batch + steps * (costs.hard_step if is_hard else costs.synthesis_step)
    return total + schedule.total_kd_steps * costs.kd_step


@pytest.mark.parametrize("seconds", [60, 480, 1200, 7200, 86_400])
@pytest.mark.parametrize("slower", [0.1, 1, 5])
def test_the_counts_fill_the_time(recipe: Path, seconds: float, slower: float) -> None:
    costs = replace(COSTS, kd_step=slower * COSTS.kd_step, hard_step=slower * COSTS.hard_step)
    fitted = fitted_to(load_recipe(str(recipe)), costs, seconds)
    assert fitted is not None
    assert seconds_of(fitted, costs) == pytest.approx(seconds, rel=0.04)
    assert fitted.schedule.total_batches >= 2
    assert 10 <= fitted.synthesize.steps <= 200


def test_more_time_means_more_of_everything(recipe: Path) -> None:
    short, long = (fitted_to(load_recipe(str(recipe)), COSTS, seconds) for seconds in (120, 3600))
    assert short is not None
    assert long is not None
    assert long.schedule.total_batches > short.schedule.total_batches
    assert long.schedule.total_kd_steps > short.schedule.total_kd_steps
    assert long.synthesize.steps >= short.synthesize.steps


def test_too_short_a_time_fits_nothing(recipe: Path) -> None:
    loaded = load_recipe(str(recipe))
    assert fitted_to(loaded, COSTS, least(loaded, COSTS) - 0.1) is None
    assert fitted_to(loaded, COSTS, least(loaded, COSTS) + 0.1) is not None


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(74.2, "75s"), (120, "120s"), (121, "3m"), (3600, "1h"), (5401, "1h31m")]
)
def test_times_are_written_as_they_are_read(seconds: float, text: str) -> None:
    assert as_budget(seconds) == text
    assert seconds <= parse_budget(text) < seconds + 60


@pytest.mark.parametrize("text", ["", "10", "m", "10 m", "-5m", "10m!", "0s", "10d"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^--budget is '.*'; give a time such as 90s, 10m, 2h or 1h30m$"):
        parse_budget(text)


def test_the_rounds_outlast_a_warm_up_of_the_learning_rate(recipe: Path) -> None:
    loaded = load_recipe(str(recipe), {"distill.warmup_steps": 500})
    seconds = least(loaded, COSTS) + 0.1
    fitted = fitted_to(loaded, COSTS, seconds)
    assert fitted is not None
    assert fitted.schedule.total_kd_steps > 500
    assert seconds_of(fitted, COSTS) <= 1.04 * seconds


@pytest.mark.parametrize("kd_step", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("more", [0.1, 10.0, 60.0])
def test_a_time_that_is_hardly_enough_is_kept(recipe: Path, kd_step: float, more: float) -> None:
    loaded, costs = load_recipe(str(recipe)), replace(COSTS, kd_step=kd_step)
    seconds = least(loaded, costs) + more
    fitted = fitted_to(loaded, costs, seconds)
    assert fitted is not None
    assert seconds_of(fitted, costs) <= 1.04 * seconds


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--budget", "10m", "--schedule.rounds", "5", "--synthesize.steps=100"],
            "error: --budget chooses schedule.rounds, synthesize.steps; leave out one or the other\n",
        ),
        (["--budget", "10h", "--evaluate.data", "absent"], "error: evaluate.data: 'absent' does not exist"),
        (["--budget", "1s"], "error: --budget is 1s, which is too short for this teacher on this machine"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_at_once(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("engine.cli.budget._all_costs", lambda *_: pytest.fail("training is timed"))
    assert main(run, ["--recipe", str(recipe), "--out", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_variations_are_timed_with_a_few_of_each_source(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []

    def first_costs(loop: Loop, _seconds: float, _opening: float, more: float) -> Costs:
        seen.append((loop.recipe.augment.variations, more))
        return COSTS

    monkeypatch.setattr("engine.cli.budget._first_costs", first_costs)
    resolved = resolve(load_recipe(str(recipe), {"augment.variations": 12}))
    assert measure(resolved, 1, time.perf_counter()) == COSTS, (
        "the rest is not timed if the time is too short"
    )
    assert seen == [(2, 6.0)]


def test_a_short_time_has_a_short_warm_up_of_the_generator(recipe: Path) -> None:
    loaded = load_recipe(str(recipe), {"synthesize.warmup_steps": 200})
    short, long = (fitted_to(loaded, COSTS, seconds) for seconds in (40, 3600))
    assert short is not None
    assert long is not None
    assert (short.synthesize.warmup_steps, long.synthesize.warmup_steps) == (32, 200)


def test_batches_shrink_with_the_time(recipe: Path) -> None:
    resolved = resolve(load_recipe(str(recipe), {"synthesize.batch_size": 128, "distill.batch_size": 64}))
    assert with_batches(resolved, 1e5).synthesize.batch_size == 128
    tight = with_batches(resolved, 1e-3)
    assert (tight.synthesize.batch_size, tight.distill.batch_size) == (8, 8)


def test_a_run_keeps_to_its_budget_and_its_counts(
    recipe: Path, tmp_path: Path, commands: CommandServer
) -> None:
    out = tmp_path / "run"
    first = commands.start("engine.run", ["--recipe", str(recipe), "--out", str(out), "--budget", "40s"])
    _, error = first.communicate()
    assert first.returncode == 0, error
    assert 20 < first.seconds < 60  # generous: other tests run at the same time
    counts = load_recipe(str(out / "config.yaml")).schedule
    assert counts.total_kd_steps > 30
    again = commands.start("engine.run", ["--out", str(out), "--resume", "--budget", "10m"])
    _, error = again.communicate()
    assert again.returncode == 0, error
    assert load_recipe(str(out / "config.yaml")).schedule == counts
