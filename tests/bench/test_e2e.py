"""The end-to-end bench: its arms, time budgets, resumption and report."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.__main__ import command
from bench.clock import Clock
from bench.e2e import arms, own_loop, report
from bench.e2e import measure as measuring
from bench.e2e.arms import ARMS, Arm, OwnArm, PublishedArm
from bench.e2e.made_images import NoiseImages, PriorImages
from bench.e2e.measure import measure
from bench.e2e.own_loop import CALIBRATION, Costs, Piece
from bench.e2e.results import Result
from bench.published import csd, fast_dfkd
from bench.rows import write_rows
from engine.cli.main import main
from engine.cli.resolve import resolve
from engine.config.schedule import Synthesis, Training
from engine.errors import UserError
from engine.loop import open_loop
from engine.models.networks import wrn_16_1
from engine.progress import Progress
from engine.recipes.load import load_recipe
from tests.labeled_images import class_folders
from tests.tiny_priors import CLASS_NAMES
from tests.tiny_recipe import write_recipe

RESULT = Result(
    arm="fast-dfkd",
    seed=0,
    seconds=100.0,
    wall_seconds=101.0,
    images=10,
    steps=20,
    top1=0.6,
    agreement=0.61,
    teacher_top1=0.93,
    curve=((50.0, 0.5), (101.0, 0.6)),
    device="cpu",
    precision="fp32",
    commit="abc",
)


class Time:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe with a test set that runs in seconds."""
    folder = tmp_path_factory.mktemp("tiny")
    data = class_folders(folder / "test", names=CLASS_NAMES)
    return write_recipe(folder, evaluate={"data": str(data)}, distill={"w_feature": 0.0})


def tiny_arms(tiny: Path) -> dict[str, Arm]:
    """Return small versions of the default arms."""

    def fast_loop(pair, clock, _):
        settings = fast_dfkd.FastSettings(batch=6, steps=2, warmup_batches=2, kd_batch=6)
        return fast_dfkd.train(pair, clock, settings)

    def csd_loop(pair, clock, seed):
        settings = csd.CsdSettings(batch=6, bank_batches=2, bank_steps=3, round_steps=2, kd_batch=6)
        return csd.train(pair, clock, settings, seed)

    loops = {"fast-dfkd": fast_loop, "csd": csd_loop}
    return {
        name: PublishedArm(recipe=str(tiny), loop=loops[name])
        if name in loops
        else replace(arm, recipe=str(tiny))
        for name, arm in arms.DEFAULT_ARMS.items()
    }


@pytest.mark.parametrize(
    "name", ["synthesis", "diffusion", "diffusion+clip", "diffusion+clip+class", "no-prior"]
)
def test_ablations_are_the_default_recipe_without_some_parts(name: str) -> None:
    default, arm = load_recipe("fashion-mnist"), ARMS[name].load(name, seed=3)
    assert (arm.name, arm.seed) == (name, 3)
    assert arm.synthesize == default.synthesize
    assert arm.distill == default.distill
    assert (arm.augment.method == "none") == (name in ("synthesis", "no-prior"))
    assert (arm.filter.method == "clip") == ("clip" in name)
    assert arm.filter.class_gate == ("class" in name)


def test_all_arms_have_one_teacher_and_one_student_network() -> None:
    loaded = [load_recipe(arm.recipe, arm.changes) for arm in ARMS.values()]
    assert {(recipe.teacher, recipe.student) for recipe in loaded} == {(loaded[0].teacher, loaded[0].student)}


@pytest.mark.parametrize("seconds", [120.0, 900.0])
def test_the_counts_of_an_arm_take_its_seconds(seconds: float) -> None:
    """Costs come from a run with known times, and the schedule adds up to the seconds."""
    pieces, wall = [], 7.0
    works: list[tuple[Synthesis | Training, float]] = [(Synthesis(batch=0), 30.0), (Synthesis(batch=1), 3.0)]
    works += [
        (Training(round=0, first_step=0, steps=25), 9.0),
        (Training(round=0, first_step=0, steps=25), 5.0),
    ]
    works += [(Synthesis(batch=2), 4.0), (Training(round=1, first_step=50, steps=50), 10.0)]
    works += [(Synthesis(batch=3), 4.0)]
    for work, spent in works:
        pieces.append(Piece(work=work, seconds=spent))
        wall += spent
    costs = own_loop.costs_of(pieces, wall)
    assert (costs.batch, costs.hard_batch, costs.step) == (3.0, 4.0, 0.2)
    assert costs.fixed == pytest.approx(7 + 27 + 4)  # loading, and what came with the first batch and steps
    recipe = load_recipe("fashion-mnist")
    schedule = own_loop.allot(recipe, OwnArm(), costs, seconds)
    rounds = schedule.rounds
    images = schedule.init_batches * 3.0 + rounds * schedule.batches_per_round * 4.0
    assert rounds == recipe.schedule.rounds
    assert costs.fixed + images + 0.2 * schedule.total_kd_steps == pytest.approx(seconds, rel=0.02)
    assert images == pytest.approx((seconds - costs.fixed) / 2, rel=0.1)


def test_arms_with_other_counts() -> None:
    recipe, costs = load_recipe("fashion-mnist"), Costs(batch=1, hard_batch=1, step=1, fixed=60)
    assert own_loop.allot(recipe, OwnArm(), costs, 5.0).total_batches == 1
    noise = own_loop.allot(recipe, OwnArm(batches=8), costs, 98.0)
    assert (noise.total_batches, noise.total_kd_steps) == (8, 30)


def test_a_short_schedule_cuts_the_warmup_and_pauses_for_copies() -> None:
    recipe = own_loop.with_schedule(load_recipe("fashion-mnist"), replace(CALIBRATION, kd_steps=20))
    assert recipe.distill.warmup_steps == 20
    assert recipe.schedule.checkpoint_steps == 2
    assert recipe.schedule.total_kd_steps == 40


def test_a_clock_copies_the_student_at_moments_and_does_not_count_that() -> None:
    time, student = Time(), torch.nn.Linear(1, 1)
    clock = Clock(seconds=100.0, now=time)
    for second in range(101):
        time.now = float(second)
        torch.nn.init.constant_(student.weight, second)
        clock.keep(student)
    assert clock.stop(student) == 100.0
    assert [snapshot.seconds for snapshot in clock.snapshots] == [*range(10, 101, 10), 100]
    assert [snapshot.weights["weight"].item() for snapshot in clock.snapshots][:3] == [10, 20, 30]
    clock.paused = 40.0
    assert clock.elapsed == 60.0


@pytest.mark.parametrize("images", [NoiseImages, PriorImages])
def test_images_that_need_no_inversion(images: type, tiny: Path, tmp_path: Path) -> None:
    changes = arms.NO_PRIOR if images is NoiseImages else arms.NO_FILTER
    recipe = resolve(load_recipe(str(tiny), dict(changes)))
    with (
        Progress(quiet=True) as progress,
        open_loop(recipe, tmp_path, resume=False, progress=progress) as loop,
    ):
        maker = images(recipe, loop.networks, loop.accelerator, progress)
        batch, again, other = maker.make(0), maker.make(0), maker.make(1)
    count = 6 if images is NoiseImages else 6 * 3
    assert batch.sources.images.shape == (count, 3, 16, 16)
    assert batch.kept_images().shape == (count, 16, 16, 3)
    assert torch.equal(batch.sources.images, again.sources.images)
    assert not torch.equal(batch.sources.images, other.sources.images)
    assert not set(batch.sources.keys.tolist()) & set(other.sources.keys.tolist())
    if images is NoiseImages:
        assert torch.equal(batch.sources.labels, batch.source_top1)
    else:
        assert torch.equal(batch.sources.labels, torch.arange(count) % 3)


@pytest.mark.slow
def test_every_arm_is_measured_and_resumed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, out = tiny_arms(tiny), tmp_path / "out"
    monkeypatch.setattr(own_loop, "allot", lambda *_: replace(CALIBRATION, rounds=1, kd_steps=12))
    found = list(measure([*small], [0], 2.0, out, arms=small))
    assert [result.arm for result in found] == [*small]
    for result in found:
        assert result.steps > 0
        assert result.images > 0
        assert result.curve[-1] == (result.wall_seconds, result.top1)
        assert all(0 <= top1 <= 1 for _, top1 in result.curve)
    by_clock = found[0]
    assert by_clock.wall_seconds == pytest.approx(2.0, rel=0.5)
    assert not (out / "ours/seed-0/run").exists()
    students = torch.load(out / "ours/seed-0/students.pt", weights_only=True)
    wrn_16_1(3, 1).load_state_dict(
        {k.removeprefix("network."): v for k, v in students[-1]["weights"].items()}
    )

    torch.save({}, out / "csd/seed-0/rest.pt")
    (out / "csd/seed-0/results.json").unlink()  # as if it had been interrupted
    monkeypatch.setattr(measuring, "_measured", lambda name, *_: replace(RESULT, arm=f"new {name}"))
    resumed = list(measure([*small], [0], 2.0, out, resume=True, arms=small))
    assert [result.arm for result in resumed] == [
        small_name if small_name != "csd" else "new csd" for small_name in small
    ]
    assert resumed[0] == found[0]


def test_an_interrupted_arm_starts_again(tiny: Path, tmp_path: Path) -> None:
    small = {"fast-dfkd": tiny_arms(tiny)["fast-dfkd"]}
    rest = tmp_path / "fast-dfkd/seed-1/rest"
    rest.mkdir(parents=True)
    (result,) = measure([*small], [1], 0.5, tmp_path, resume=True, arms=small)
    assert result.seed == 1
    assert not rest.exists()


def test_the_table_has_mean_and_spread() -> None:
    ours = [
        replace(
            RESULT, arm="ours", seed=seed, top1=top1, wall_seconds=110.0, curve=((52.0, 0.4), (110.0, top1))
        )
        for seed, top1 in enumerate((0.8, 0.9, 1.0))
    ]
    results = [RESULT, *ours]
    table = report.table(results)
    assert "| fast-dfkd | 60.00 % | 61.00% | 101 | 10 | 20 | 0 | fp32 |" in table
    assert "| ours | 90.00 ± 10.00 % | 61.00% | 110 (missed by +10%) | 10 | 20 | 0, 1, 2 | fp32 |" in table
    assert "not the best one" in table
    assert "ours: 52 s 40.0, 110 s 90.0" in report.curves(results)


def test_rows_are_ratios_to_fast_dfkd(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.json", report.rows([replace(RESULT, arm="ours", top1=0.9), RESULT]))
    first, second = json.loads((tmp_path / "rows.json").read_text())
    assert (first["case"], first["baseline"], first["floor"]) == ("e2e/ours", "fast-dfkd", None)
    assert first["ratio"] == pytest.approx(1.5)
    assert (second["case"], second["ratio"]) == ("e2e/fast-dfkd", 1.0)
    (alone,) = report.rows([replace(RESULT, arm="noise")])
    assert alone.baseline == "noise"


def test_an_untrained_student_is_no_baseline() -> None:
    results = [replace(RESULT, steps=0), replace(RESULT, arm="noise")]
    (row,) = report.rows(results)
    assert (row.case, row.baseline) == ("e2e/noise", "noise")
    assert report.rows(results[:1]) == []
    assert "| 0 (too little time) |" in report.table(results)


def test_a_mean_curve_leaves_out_seeds_without_a_student() -> None:
    early, late = ((20.0, 0.2), (100.0, 0.8)), ((21.0, 0.4), (60.0, 0.6), (102.0, 0.9))
    (summary,) = report.summaries([replace(RESULT, curve=early), replace(RESULT, seed=1, curve=late)])
    assert [point.seconds for point in summary.curve] == [20.5, 60.0, 101.0]
    assert [point.top1 for point in summary.curve] == pytest.approx([0.3, 0.6, 0.85])


def test_a_picture_of_the_curves(tmp_path: Path) -> None:
    report.save_picture([RESULT, replace(RESULT, arm="ours")], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (800, 500)


def test_the_command_writes_table_rows_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(names: list[str], seeds: list[int], *_: object, **__: object) -> Iterator[Result]:
        for seed in seeds:
            for name in names:
                yield replace(RESULT, arm=name, seed=seed)

    monkeypatch.setattr(measuring, "measure", fake)
    line = ["e2e", "--seeds", "1,2", "--out", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    assert main(command, line) == 0
    shown = capsys.readouterr().out
    assert "ours, seed 2: 60.00% in 101 s" in shown
    assert "| prior | 60.00 ± 0.00 % |" in shown
    assert (tmp_path / "curves.png").is_file()
    assert len(json.loads((tmp_path / "rows.json").read_text())) == len(arms.DEFAULT_ARMS)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fault(*arguments: str) -> str:
        assert main(command, ["e2e", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert "\n" not in error
        return error

    assert "--arms has 'magic'; choose from fast-dfkd" in fault("--arms", "magic")
    assert "--seeds is '0,x'; use comma-separated integers of at least 0" in fault("--seeds", "0,x")
    assert "--seconds is 0; give a number above 0" in fault("--seconds", "0")
    (tmp_path / "x").touch()
    assert "is not empty; continue with --resume" in fault("--out", str(tmp_path))


def test_resuming_with_other_seconds_or_without_a_test_set_is_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RESULT.write(tmp_path / "fast-dfkd/seed-0")
    assert (
        main(command, ["e2e", "--arms", "fast-dfkd", "--out", str(tmp_path), "--resume", "--seconds", "7"])
        == 2
    )
    assert "was measured with --seconds 100, not 7" in capsys.readouterr().err
    untested = OwnArm(recipe=str(tiny), changes={"evaluate.data": None})
    with pytest.raises(UserError, match="there is none: evaluate.data is null"):
        next(measure(["ours"], [0], 1.0, tmp_path / "new", arms={"ours": untested}))
