"""`python -m engine.distill`: train a student on banks, and resume such a run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.bank.__main__ import command as bank_command
from engine.bank.reader import BankReader
from engine.bank.writer import BankWriter
from engine.cli.main import main
from engine.distill import command
from engine.evaluate import evaluate_run
from engine.generate import command as generate
from engine.training import checkpoint
from engine.training.run_folder import lock_run
from tests.engine.bank import tiny
from tests.loop_runs import interrupted_at
from tests.tiny_recipe import write_recipe

STUDENT = "student.safetensors"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    schedule = {"rounds": 2, "kd_steps": 3, "checkpoint_steps": 2}
    return write_recipe(tmp_path_factory.mktemp("recipe"), schedule=schedule)


@pytest.fixture(scope="module")
def banks(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two banks with different seeds."""
    folders = tmp_path_factory.mktemp("banks")
    paths = folders / "a", folders / "b"
    for seed, out in enumerate(paths):
        arguments = ["--recipe", str(recipe), "--out", str(out), "--shards", "2", "--seed", str(seed)]
        assert main(generate, arguments) == 0
    return paths


CPU = ("--runtime", "torch", "--compute.precision", "fp32")


def distill(banks: list[Path], out: Path, *arguments: str) -> int:
    return main(command, ["--bank", ",".join(map(str, banks)), "--out", str(out), *CPU, *arguments])


def student(out: Path) -> bytes:
    return (out / STUDENT).read_bytes()


@pytest.fixture(scope="module")
def finished(banks: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert distill([banks[0]], out) == 0
    return out


def test_a_run_takes_the_recipe_of_its_bank(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["recipe"] == "tiny"
    assert summary["images_synthesized"] == 2 * 6
    assert summary["images_augmented"] == 2 * 6 * 3
    assert set(summary["seconds_by_stage"]) == {"distill"}
    assert checkpoint.load(finished / "checkpoints")["training"]["step"] == 6


def test_settings_on_the_command_line_beat_the_bank(banks: tuple[Path, Path], tmp_path: Path) -> None:
    assert distill([banks[0]], tmp_path, "--schedule.rounds", "1", "--schedule.kd_steps", "1") == 0
    assert checkpoint.load(tmp_path / "checkpoints")["training"]["step"] == 1


def test_taps_are_aligned_too(
    banks: tuple[Path, Path], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taps = "{stages.0: stages.0, stages.1: stages.2}"
    assert distill([banks[0]], tmp_path / "run", "--distill.taps", taps) == 0
    assert len(checkpoint.load(tmp_path / "run" / "checkpoints")["training"]["align"]) == 3
    assert student(tmp_path / "run") != student(finished)
    capsys.readouterr()
    assert distill([banks[0]], tmp_path / "wrong", "--distill.taps", "{stages.0: stages.7}") == 2
    assert "distill.taps: the student has no submodule 'stages.7'" in capsys.readouterr().err


def test_both_feeds_give_the_same_student(finished: Path, banks: tuple[Path, Path], tmp_path: Path) -> None:
    for kind in ("dali", "torch"):
        assert distill([banks[0]], tmp_path / kind, "--feed.kind", kind) == 0
        assert student(tmp_path / kind) == student(finished)


def test_a_bank_of_version_1_gives_the_same_student_and_does_not_mix_with_a_grey_one(
    finished: Path, banks: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The old bank has the same images, with three channels."""
    old, grey = tmp_path / "old", BankReader.open(str(banks[0]))
    header = replace(grey.header, channels=3)
    with BankWriter.open(str(old), header, resume=False) as writer:
        for number in grey.numbers:
            images = grey.images(number, range(len(grey.spans(number))))
            writer.commit(number, grey.rows(number), images)
    tiny.to_version_1(old)
    assert distill([old], tmp_path / "out") == 0
    assert student(tmp_path / "out") == student(finished)
    capsys.readouterr()
    assert distill([old, banks[0]], tmp_path / "both") == 2
    assert f"--bank {banks[0]} stores images as grey, but the first as RGB" in capsys.readouterr().err


@pytest.mark.parametrize("cut_after", range(5))
def test_a_run_cut_between_two_commits_resumes_to_the_same_student(
    cut_after: int,
    finished: Path,
    banks: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There are four commits: one at the start, and one after every second of six steps."""
    with interrupted_at(cut_after, monkeypatch):
        assert distill([banks[0]], tmp_path) == (130 if cut_after < 4 else 0)
    assert (f"--out {tmp_path} --resume" in capsys.readouterr().err) == (cut_after < 4)
    assert distill([banks[0]], tmp_path, "--resume") == 0
    assert student(tmp_path) == student(finished)


def test_a_run_resumes_with_the_shards_it_began_with(
    recipe: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, out = tmp_path / "bank", tmp_path / "out"
    arguments = ["--recipe", str(recipe), "--out", str(bank), "--shards"]
    assert main(generate, [*arguments, "2"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("engine.training.trainer.StudentTrainer.train", interrupt)
        assert distill([bank], out) == 130
    assert main(generate, [*arguments, "3", "--resume"]) == 0
    assert distill([bank], out, "--resume") == 0
    assert student(out) == student(finished)
    assert json.loads((out / "summary.json").read_text())["images_synthesized"] == 2 * 6


def test_a_run_is_continued_by_one_process_at_a_time(
    finished: Path, banks: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = finished / "checkpoints/state.pt"
    before = state.stat().st_mtime_ns
    with lock_run(finished, resume=True):
        assert distill([banks[0]], finished, "--resume") == 2
    assert f"--out {finished} is in use by another process" in capsys.readouterr().err
    assert state.stat().st_mtime_ns == before
    with lock_run(tmp_path, resume=False):
        assert distill([banks[0]], tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert distill([banks[0]], tmp_path) == 0


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_banks_are_mixed_by_their_shares(finished: Path, banks: tuple[Path, Path], tmp_path: Path) -> None:
    students = {student(finished)}
    for shares in ([], ["--shares", "1,1"], ["--shares", "1,7"]):
        out = tmp_path / str(len(students))
        assert distill(list(banks), out, *shares) == 0
        students.add(student(out))
    assert len(students) == 4
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images_synthesized"] == 4 * 6


def test_a_merged_bank_has_the_recipe_of_its_banks(
    recipe: Path, banks: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The banks may differ in seeds and settings, and may themselves be merged."""
    third, two, merged = (str(tmp_path / name) for name in ("third", "two", "merged"))
    other = ["--filter.quantile", "0.4"]
    assert main(generate, ["--recipe", str(recipe), "--out", third, *other]) == 0
    assert main(bank_command, ["merge", str(banks[0]), str(banks[1]), "--out", two]) == 0
    assert main(bank_command, ["merge", two, third, "--out", merged]) == 0
    assert distill([Path(merged)], tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["recipe"], summary["images_synthesized"]) == ("tiny", 5 * 6)
    again = tmp_path / "again"
    assert distill([Path(merged)], again, "--recipe", str(recipe)) == 0
    assert student(again) == student(tmp_path / "out")

    fourth = str(tmp_path / "fourth")
    assert main(generate, ["--recipe", str(recipe), "--out", fourth, "--distill.lr", "0.5"]) == 0
    assert main(bank_command, ["merge", merged, fourth, "--out", str(tmp_path / "mixed")]) == 0
    capsys.readouterr()
    assert distill([tmp_path / "mixed"], tmp_path / "none") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "merged from banks with different recipes (distill.lr: 0.02 -> 0.5)" in line
    assert "--recipe" in line
    assert distill([tmp_path / "mixed"], tmp_path / "by recipe", "--recipe", str(recipe)) == 0


def damage(bank: Path) -> None:
    path = bank / "00001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


def remove_shard(bank: Path) -> None:
    (bank / "00000.tar").unlink()


@pytest.mark.parametrize(("break_bank", "shard"), [(damage, "00001"), (remove_shard, "00000")])
def test_a_damaged_bank_is_named_and_its_command_repairs_it(
    break_bank: Callable[[Path], None],
    shard: str,
    recipe: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bank, out = tmp_path / "bank", tmp_path / "out"
    arguments = ["--recipe", str(recipe), "--out", str(bank), "--shards", "2"]
    assert main(generate, arguments) == 0
    break_bank(bank)
    assert distill([bank], out) == 2
    assert f"shard {shard}" in capsys.readouterr().err.splitlines()[-1]
    assert main(generate, [*arguments, "--resume"]) == 0
    assert distill([bank], out, "--resume") == 0
    assert student(out) == student(finished)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bank", ""], "--bank BANK is missing"),
        (["--bank", "nowhere"], "nowhere has no manifest.json"),
        (["--bank", "A", "--shares", "1,2"], "--shares is 1,2; give 1 comma-separated numbers"),
        (["--bank", "A,B", "--shares", "1,-2"], "--shares is 1,-2; give 2 comma-separated numbers"),
        (["--bank", "A", "--class_names", '["x", "y", "z"]'], "class_names"),
        (["--bank", "A", "--teacher.image_size", "20", "--student.image_size", "20"], "16x16"),
    ],
)
def test_a_bad_command_is_one_line(
    arguments: list[str],
    words: str,
    banks: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"A": str(banks[0]), "A,B": f"{banks[0]},{banks[1]}"}
    given = [paths.get(argument, argument) for argument in arguments]
    assert main(command, [*given, "--out", str(tmp_path / "out"), *CPU]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_did_not_make_the_bank_is_refused(
    recipe: Path, banks: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes((recipe.parent / "teacher.safetensors").read_bytes() + b" ")
    for flags in ([], ["--recipe", str(recipe)]):
        flags += ["--teacher.weights", str(other)]
        assert distill(list(banks), tmp_path / "out", *flags) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"--bank {banks[0]} was made with another teacher: its sha256 was" in line
        assert f"teacher.weights {other} has" in line
    assert not (tmp_path / "out").exists()


def test_another_bank_or_other_shares_cannot_continue_a_run(
    finished: Path, banks: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill(list(banks), finished, "--resume") == 2
    assert f"began with --bank {banks[0]};" in capsys.readouterr().err
    assert distill([banks[0]], finished, "--resume", "--shares", "1") == 2
    assert "--shares differs from the first command's" in capsys.readouterr().err


def test_a_student_can_be_evaluated(finished: Path) -> None:
    with pytest.raises(Exception, match="no test set: evaluate.data is null"):
        evaluate_run(finished)
