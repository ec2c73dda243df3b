"""Training on stored outputs: whoever needs them first makes them, and another teacher's are never used."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.bank.reader import BankReader
from engine.bank.verify import verify
from engine.cli.main import main
from engine.distill import command
from engine.generate import command as generate
from engine.models.networks import wrn_16_1
from tests.engine.training.test_from_banks import CPU, STUDENT
from tests.loop_runs import interrupted_at, run, run_until, same_student
from tests.tiny_recipe import write_recipe

DISTILL = {"views": 2, "mixup": 0.5, "w_ce": 0.0, "w_feature": 0.0}
SHARDS = 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    schedule = {"rounds": 2, "kd_steps": 3, "checkpoint_steps": 2}
    return write_recipe(tmp_path_factory.mktemp("recipe"), schedule=schedule, distill=DISTILL)


@pytest.fixture(scope="module")
def made(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with views that workers made."""
    out = tmp_path_factory.mktemp("banks") / "made"
    assert main(generate, ["--recipe", str(recipe), "--out", str(out), "--shards", str(SHARDS)]) == 0
    return out


@pytest.fixture
def bank(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "bank")


def files(bank: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((bank / "views").iterdir())]


def distill(bank: Path, out: Path, *arguments: str) -> int:
    return main(command, ["--bank", str(bank), "--out", str(out), *CPU, *arguments])


def test_training_makes_the_bytes_that_workers_make(bank: Path, tmp_path: Path) -> None:
    by_workers = files(bank)
    assert len(by_workers) == SHARDS
    assert verify(str(bank)) == []
    assert distill(bank, tmp_path / "a") == 0
    shutil.rmtree(bank / "views")
    assert distill(bank, tmp_path / "b") == 0
    assert files(bank) == by_workers
    assert same_student(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_workers_ask_about_the_images_that_a_lossy_codec_leaves(
    codec: str, recipe: Path, tmp_path: Path
) -> None:
    bank = tmp_path / "bank"
    settings = [
        "--recipe",
        str(recipe),
        "--out",
        str(bank),
        "--storage.codec",
        codec,
        "--storage.quality",
        "60",
    ]
    assert main(generate, [*settings, "--shards", "1"]) == 0
    by_workers = files(bank)
    shutil.rmtree(bank / "views")
    assert distill(bank, tmp_path / "out") == 0
    assert files(bank) == by_workers


@pytest.mark.parametrize("seed", ["7", "-1"])
def test_the_views_of_a_shard_do_not_depend_on_the_students_seed(
    seed: str, bank: Path, tmp_path: Path
) -> None:
    before = files(bank)
    assert distill(bank, tmp_path / "a", "--seed", seed) == 0
    shutil.rmtree(bank / "views")
    assert distill(bank, tmp_path / "b", "--seed", seed) == 0
    assert files(bank) == before
    assert same_student(tmp_path / "a", tmp_path / "b")


def test_a_student_trains_on_what_it_made_if_another_one_replaces_the_file(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distill(bank, tmp_path / "alone", "--distill.crop_padding", "1") == 0
    assert distill(bank, tmp_path / "other") == 0
    others = files(bank)
    with monkeypatch.context() as patch:
        patch.setattr(BankReader, "write_views", lambda *_: None)  # as if the other one wrote last
        assert distill(bank, tmp_path / "racing", "--distill.crop_padding", "1") == 0
    assert files(bank) == others
    assert same_student(tmp_path / "alone", tmp_path / "racing")


@pytest.mark.parametrize("commit_number", [0, 1, 3])
def test_an_interrupted_training_resumes_exactly(
    commit_number: int, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distill(bank, tmp_path / "whole") == 0
    with interrupted_at(commit_number, monkeypatch):
        assert distill(bank, tmp_path / "cut") == 130
    if commit_number:
        shutil.rmtree(bank / "views")
        assert distill(bank, tmp_path / "cut", "--resume") == 0
        assert same_student(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("commit_number", [1, 3, 5])
def test_an_interrupted_run_resumes_exactly(
    commit_number: int, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe, tmp_path / "whole")
    assert run_until(commit_number, recipe, tmp_path / "cut", monkeypatch) == 130
    next((tmp_path / "cut" / "bank" / "views").iterdir()).unlink()
    run(recipe, tmp_path / "cut", "--schedule.checkpoint_steps", "2", "--resume")
    assert same_student(tmp_path / "whole", tmp_path / "cut")
    assert files(tmp_path / "whole" / "bank") == files(tmp_path / "cut" / "bank")


def test_fewer_views_are_taken_from_more(bank: Path, tmp_path: Path) -> None:
    before = files(bank)
    assert distill(bank, tmp_path / "out", "--distill.views", "1") == 0
    assert files(bank) == before


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("distill.views", "3"),
        ("distill.mixup", "1.0"),
        ("distill.crop_padding", "1"),
        ("distill.teacher_flip", "true"),
    ],
)
def test_other_settings_make_other_views(
    setting: str, value: str, bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [BankReader.open(str(bank)).views(number) for number in range(SHARDS)]
    assert distill(bank, tmp_path / "out", f"--{setting}", value) == 0
    assert capsys.readouterr().out.count("was made with other settings; making it again") == 1
    for number, old in enumerate(before):
        new = BankReader.open(str(bank)).views(number)
        assert old is not None
        assert new is not None
        assert not np.array_equal(old.outputs.logits, new.outputs.logits)
    assert verify(str(bank)) == []


def test_damaged_views_are_made_again(bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, file = files(bank), bank / "views" / "00001.safetensors"
    file.write_bytes(before[1][:-3])
    assert distill(bank, tmp_path / "out") == 0
    assert "views of shard 00001" in capsys.readouterr().out
    assert files(bank) == before


def test_views_of_another_teacher_are_not_used(
    bank: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bank refuses another teacher before; this is for a bank that does not know its teacher's hash."""
    torch.manual_seed(1)
    save_file(wrn_16_1(3, 1).state_dict(), tmp_path / "other.safetensors")
    before = files(bank)
    monkeypatch.setattr("engine.training.from_banks.require_teacher_of_bank", lambda *_: None)
    other: Any = ["--recipe", str(recipe), "--teacher.weights", str(tmp_path / "other.safetensors")]
    assert distill(bank, tmp_path / "out", *other) == 0
    assert capsys.readouterr().out.count("belongs to another teacher; making it again") == 1
    assert not set(before) & set(files(bank))


def test_a_bank_that_cannot_be_written_is_named(
    bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(bank / "views")
    (bank / "views").symlink_to("/nowhere")
    assert distill(bank, tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(bank) in error
    assert "--distill.views 0" in error


def test_pooled_features_are_stored_if_they_are_needed(
    bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, pooled = files(bank), ("--distill.feature", "pooled", "--distill.w_feature", "1.0")
    assert distill(bank, tmp_path / "a", *pooled) == 0
    assert "has no features; making it again" in capsys.readouterr().out
    after = files(bank)
    assert all(len(new) > len(old) for old, new in zip(before, after, strict=True))
    assert distill(bank, tmp_path / "b") == 0
    assert distill(bank, tmp_path / "c", *pooled) == 0
    assert files(bank) == after
    assert same_student(tmp_path / "a", tmp_path / "c")
    assert not same_student(tmp_path / "a", tmp_path / "b")


def test_a_feature_map_is_not_stored(bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill(bank, tmp_path / "out", "--distill.w_feature", "1.0") == 2
    assert "distill.views" in capsys.readouterr().err


def test_the_teacher_is_not_asked_while_the_student_trains(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr("engine.stages.distill.Distiller._teacher_outputs", refuse)
    assert distill(bank, tmp_path / "out") == 0
    assert (tmp_path / "out" / STUDENT).is_file()
