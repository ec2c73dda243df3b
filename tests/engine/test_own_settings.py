"""A resumed run or bank uses its own settings; commands that contradict them are refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from engine import distill, generate, run
from engine.bank.writer import BankWriter
from engine.cli.main import main
from engine.cli.resolve import resolve
from engine.config.recipe import Recipe, differences
from engine.errors import UserError
from engine.evaluate import evaluate_run
from engine.generation.provenance import bank_header, weights_of
from engine.recipes.load import load_recipe
from engine.training.run_folder import MACHINE_SETTINGS, commit_config
from engine.training.run_record import FILE_NAME, RunRecord
from tests.tiny_recipe import write_recipe

Seen = list[tuple[Recipe, Any]]


@pytest.fixture(scope="module")
def own_recipe(recipe: Path) -> Recipe:
    """The recipe of a run whose first command had flags."""
    return resolve(load_recipe(str(recipe), {"seed": 7, "distill.lr": 0.125}))


@pytest.fixture
def started(own_recipe: Recipe, tmp_path: Path) -> Path:
    folder = tmp_path / "started"
    folder.mkdir()
    record = RunRecord.of(
        own_recipe, weights_of(own_recipe), banks=["/some/bank", "s3://other"], shares=[0.25, 0.75]
    )
    commit_config(folder, own_recipe, record)
    return folder


def spy(seen: Seen) -> Callable[..., None]:
    def call(recipe: Recipe, *others: Any, **_: Any) -> None:
        seen.append((recipe, others))
        raise UserError("enough")

    return call


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The recipes and arguments that the commands pass on."""
    seen: Seen = []
    for function in (
        "engine.loop.run",
        "engine.training.from_banks.distill",
        "engine.generation.generate_bank.generate",
    ):
        monkeypatch.setattr(function, spy(seen))
    return seen


def test_a_resumed_run_needs_no_settings(started: Path, own_recipe: Recipe, seen: Seen) -> None:
    assert main(run.command, ["--out", str(started), "--resume"]) == 2
    assert seen == [(own_recipe, (started,))]


def test_a_resumed_distillation_needs_neither_settings_nor_banks(
    started: Path, own_recipe: Recipe, seen: Seen
) -> None:
    assert main(distill.command, ["--out", str(started), "--resume"]) == 2
    assert [others for _, others in seen] == [(["/some/bank", "s3://other"], [0.25, 0.75], started)]
    assert not [each for each in differences(own_recipe, seen[0][0]) if not each.startswith(MACHINE_SETTINGS)]
    assert main(distill.command, ["--out", str(started), "--resume", "--compute.threads", "2"]) == 2
    assert seen[1][0].compute.threads == 2, "settings of compute may change"


@pytest.mark.parametrize("command", [run.command, distill.command])
@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--seed", "1"], "seed: 7 -> 1"), (["--recipe", "RECIPE"], "seed: 7 -> 0")],
    ids=["flag", "recipe"],
)
def test_a_command_that_contradicts_the_run_is_refused(
    command: Any, flags: list[str], words: str, recipe: Path, started: Path, seen: Seen, capsys
) -> None:
    flags = [str(recipe) if flag == "RECIPE" else flag for flag in flags]
    assert main(command, ["--out", str(started), "--resume", *flags]) == 2
    line = capsys.readouterr().err
    assert (
        f"this command differs from {started / 'config.yaml'} in {words}; leave out --recipe and the" in line
    )
    assert not seen


def test_a_resumed_bank_needs_no_settings(own_recipe: Recipe, seen: Seen, tmp_path: Path) -> None:
    bank = str(tmp_path / "bank")
    BankWriter.open(bank, bank_header(own_recipe), resume=False).close()
    assert main(generate.command, ["--out", bank, "--shards", "3", "--resume"]) == 2
    (recipe, others) = seen[0]
    assert others == (bank, 3)
    assert bank_header(recipe).settings_sha256 == bank_header(own_recipe).settings_sha256


def test_a_run_must_resume_with_its_teacher(tmp_path: Path, capsys) -> None:
    path = write_recipe(
        tmp_path / "recipe", augment={"method": "none"}, filter={"method": "none", "model": ""}
    )
    own_recipe = resolve(load_recipe(str(path), {"augment.class_condition": "none"}))
    out, weights = tmp_path / "out", Path(own_recipe.teacher.weights or "")
    out.mkdir()
    commit_config(out, own_recipe, RunRecord.of(own_recipe, weights_of(own_recipe)))
    before = (out / FILE_NAME).read_bytes()
    state = load_file(weights)
    state["fc.bias"] += 1
    save_file(state, weights)
    assert main(run.command, ["--out", str(out), "--resume"]) == 2
    assert f"--out {out} was begun with another teacher: its sha256 was" in capsys.readouterr().err
    assert (out / FILE_NAME).read_bytes() == before
    save_file(state, out / "student.safetensors")
    with pytest.raises(UserError, match=rf"--run {out} was made with another teacher: its sha256 was"):
        evaluate_run(out)


def test_a_copy_of_the_teacher_elsewhere_is_accepted(
    started: Path, own_recipe: Recipe, seen: Seen, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    shutil.copy(own_recipe.teacher.weights or "", copy)
    assert main(run.command, ["--out", str(started), "--resume", "--teacher.weights", str(copy)]) == 2
    assert seen[0][0].teacher.weights == str(copy)


def test_a_refused_teacher_leaves_a_run_without_a_record_as_it_was(tmp_path: Path, capsys) -> None:
    path = write_recipe(
        tmp_path / "recipe",
        augment={"method": "none", "class_condition": "none"},
        filter={"method": "none", "model": ""},
    )
    out = tmp_path / "out"
    assert main(run.command, ["--recipe", str(path), "--out", str(out)]) == 0
    (out / FILE_NAME).unlink()
    weights = tmp_path / "recipe" / "teacher.safetensors"
    state = load_file(weights)
    state["fc.bias"] += 1
    save_file(state, weights)
    assert main(run.command, ["--out", str(out), "--resume"]) == 2
    assert "teacher.sha256" in capsys.readouterr().err
    assert not (out / FILE_NAME).exists()


def test_a_run_is_found_by_the_name_of_its_recipe(
    started: Path, own_recipe: Recipe, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    started.rename(tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    assert main(run.command, ["--name", "mine", "--resume"]) == 2
    assert [recipe.seed for recipe, _ in seen] == []  # the recipe has another name
    config = tmp_path / "runs" / "mine" / "config.yaml"
    config.write_text(config.read_text().replace("name: tiny", "name: mine", 1))
    assert main(run.command, ["--name", "mine", "--resume"]) == 2
    assert [recipe.seed for recipe, _ in seen] == [own_recipe.seed]


def test_a_damaged_record_is_named(started: Path) -> None:
    assert asdict(RunRecord.read(started))["shares"] == [0.25, 0.75]
    assert RunRecord.read(started / "nowhere") == RunRecord()
    wrong: list[dict[str, Any]] = [
        {"weights": []},
        {"weights": {"teacher": {"sha256": 5}}},
        {"weights": {"teacher": None}},
    ]
    wrong += [{"student_sha256": 5}, {"banks": {"a": "b"}}, {"shares": 3}]
    others = [json.dumps({"factories": {}, **fields}) for fields in wrong]
    for text in (*others, "{", "[]", '{"factories": {"student": 3}}', '{"factories": {}, "more": 1}'):
        (started / FILE_NAME).write_text(text)
        with pytest.raises(
            UserError, match=rf"{started / FILE_NAME} is damaged .*; restore it, or delete it"
        ):
            RunRecord.read(started)
