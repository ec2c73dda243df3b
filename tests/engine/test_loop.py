"""The whole loop on tiny models: its files, repeated and resumed runs, and the data that it reads."""

import ast
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from engine import loop as loop_module
from engine import networks
from engine.bank.reader import BankReader
from engine.bank.rows import Rows
from engine.bank.verify import verify
from engine.cli.main import main
from engine.cli.resolve import resolve
from engine.datasets import formats, source
from engine.datasets.source import LabeledSource
from engine.recipes.load import load_recipe
from engine.run import command
from engine.seeding import derive_seed
from engine.stages.distill import Distiller
from engine.training.run_folder import lock_run
from tests.labeled_images import class_folders
from tests.loop_runs import OFTEN, run, run_until, same_student
from tests.tiny_priors import CLASS_NAMES, IMAGE_SIZE
from tests.tiny_recipe import write_recipe


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    run(recipe, out)
    return out


def test_a_run_writes_all_its_files(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["images_synthesized"] == 4 * 6
    assert summary["images_augmented"] == 4 * 6 * 3
    assert 0 < summary["images_accepted"] < summary["images_augmented"]
    assert summary["acceptance_rate"] == summary["images_accepted"] / summary["images_augmented"]
    assert summary["student_top1"] is None
    assert summary["accuracy_reason"] == "evaluate.data is null"
    assert set(summary["seconds_by_stage"]) == {"synthesize", "augment", "filter", "distill"}
    assert 0 < summary["mean_pairwise_clip_distance"] < 2
    student = load_file(finished / "student.safetensors")
    assert student["fc.weight"].shape == (3, 64)
    assert (finished / "variations.png").read_bytes().startswith(b"\x89PNG")
    assert not (finished / "sources.png").exists()
    bank = BankReader.open(str(finished / "bank"))
    shards = [bank.rows(number) for number in bank.numbers]
    assert len(shards) == 4
    columns = {name: np.concatenate([getattr(rows, name) for rows in shards]) for name in Rows.__slots__}
    variation, kept = columns["parents"] >= 0, columns["kept"]
    assert len(np.unique(columns["keys"])) == 4 * 6 * 4, "also of rejected images"
    assert kept[variation].sum() == summary["images_accepted"]
    assert kept[~variation].all()
    similarity = columns["similarity"]
    assert similarity[variation & kept].mean() > similarity[variation & ~kept].mean()
    assert verify(str(finished / "bank")) == []
    assert (finished / "config.yaml").is_file()
    assert any((finished / "tb").iterdir())


def test_the_same_command_twice_gives_the_same_images_and_student(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    again = run(recipe, tmp_path / "again")
    first = json.loads((finished / "summary.json").read_text())
    assert again["images_sha256"] == first["images_sha256"]
    assert same_student(finished, tmp_path / "again")
    other = run(recipe, tmp_path / "other", "--seed", "1")
    assert other["images_sha256"] != first["images_sha256"]


DRAWS = {
    ("probe",),
    ("probe", 1),
    ("generator",),
    ("rotation-head", 0),
    ("student",),
    ("align",),
    ("measured-images",),
    *(("synthesize", batch) for batch in range(-1, 4)),
    *(("labels", turn) for turn in range(-1, 4)),  # 6 images of 3 classes: one turn per batch
    *(("augment", 4 * source, k) for source in range(24) for k in range(3)),
    *(("distill-forward", step, 0) for step in range(6)),
}


def test_draws_keep_their_names(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other names, a bank or run of an earlier version would continue with other numbers."""
    drawn: set[tuple[int | str, ...]] = set()

    def recorded(seed: int, *parts: int | str) -> int:
        assert seed == 0
        drawn.add(parts)
        return derive_seed(seed, *parts)

    for name, module in list(sys.modules.items()):
        if name.startswith("engine.") and hasattr(module, "derive_seed"):
            monkeypatch.setattr(module, "derive_seed", recorded)
    run(recipe, tmp_path / "out")
    assert drawn == DRAWS


SYNTHESIS_ONLY: dict[str, Any] = {
    "augment": {"method": "none", "class_condition": "none"},
    "filter": {"method": "none", "quantile": None, "model": ""},
}


def test_a_run_without_a_prior_writes_a_picture_too_and_so_does_a_resumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "recipe", **SYNTHESIS_ONLY)
    run(recipe, tmp_path / "out")
    assert "sources.png" in capsys.readouterr().out.splitlines()[-2]
    assert not (tmp_path / "out/variations.png").exists()
    with Image.open(tmp_path / "out/sources.png") as picture:
        assert picture.height > 3 * 96
        whole = np.array(picture)
    assert run_until(5, recipe, tmp_path / "cut", monkeypatch) == 130
    assert not (tmp_path / "cut/sources.png").exists()
    run(recipe, tmp_path / "cut", *OFTEN, "--resume")
    with Image.open(tmp_path / "cut/sources.png") as picture:
        assert (np.array(picture) == whole).all()


def test_the_time_of_the_run_is_that_of_the_whole_command_and_of_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, pause = write_recipe(tmp_path / "recipe", **SYNTHESIS_ONLY), 2.0

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(pause)  # for what a command does before it opens the run, as --budget measures
        return resolve(*arguments, **options)

    monkeypatch.setattr("engine.run.resolve", slow)
    summary = run(recipe, tmp_path / "out")
    first = summary["wall_seconds"]
    assert first > pause + sum(summary["seconds_by_stage"].values())
    saved = torch.load(tmp_path / "out/checkpoints/state.pt")["wall_seconds"]
    assert pause < saved < first
    assert run(recipe, tmp_path / "out", "--resume")["wall_seconds"] > saved + pause


def test_one_batch_and_one_step_are_not_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = {"init_batches": 1, "rounds": 1, "batches_per_round": 0, "kd_steps": 1}
    run(write_recipe(tmp_path / "recipe", schedule=schedule, **SYNTHESIS_ONLY), tmp_path / "out")
    assert "to do: 1 batch of images, 1 training step\n" in capsys.readouterr().out


def test_the_progress_says_how_often_the_teacher_agrees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(write_recipe(tmp_path / "recipe", schedule={"init_batches": 1}, **SYNTHESIS_ONLY), tmp_path / "out")
    lines = re.findall(r"synthesize 6 images in .*", capsys.readouterr().out)
    assert len(lines) == 3
    assert all(re.search(r", teacher agrees with \d+ %", line) for line in lines)


@pytest.mark.parametrize("cut_after", [0, 4, 8])
def test_a_run_cut_between_two_commits_resumes_to_the_same_end(
    recipe: Path,
    finished: Path,
    tmp_path: Path,
    cut_after: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "cut"
    code = run_until(cut_after, recipe, out, monkeypatch)
    assert code == (130 if cut_after < 8 else 0), "all commits were made"
    assert (f"--out {out} --resume" in capsys.readouterr().err) == (cut_after < 8)
    resumed = run(recipe, out, "--resume", *OFTEN)
    first = json.loads((finished / "summary.json").read_text())
    timed = {"seconds_by_stage", "wall_seconds", "images_per_second"}
    assert {k: v for k, v in resumed.items() if k not in timed} == {
        k: v for k, v in first.items() if k not in timed
    }
    assert same_student(finished, out)
    ours, theirs = (
        {str(file.relative_to(folder)) for file in (folder / "bank").rglob("*")} for folder in (out, finished)
    )
    assert ours == theirs


def test_two_threads_repeat_themselves_after_a_cut(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    two = "--threads", "2", "--compute.share_cores", "false"
    first = run(recipe, whole, *two)
    assert load_recipe(str(whole / "config.yaml")).compute.threads == 2
    assert run_until(5, recipe, cut, monkeypatch, *two) == 130
    assert run(recipe, cut, *OFTEN, *two, "--resume")["images_sha256"] == first["images_sha256"]
    assert same_student(whole, cut)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["00001.tar", "rows/00001.parquet", "stats/00001.json"])
def test_a_damaged_shard_that_was_trained_on_stays_until_it_is_restored(
    name: str,
    recipe: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run_until(5, recipe, out, monkeypatch) == 130
    flip(out / "bank" / name)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    arguments = ["--recipe", str(recipe), "--out", str(out), *OFTEN, "--resume"]
    for _ in range(2):
        assert main(command, arguments) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"{out}/bank: shard 00001: {name} was altered" in line
        assert "restore the file from a copy" in line
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    flip(out / "bank" / name)
    run(recipe, out, "--resume", *OFTEN)
    assert same_student(finished, out)


def test_a_damaged_shard_that_no_checkpoint_names_is_made_again(
    recipe: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run_until(5, recipe, out, monkeypatch) == 130
    flip(out / "bank/00003.tar")
    run(recipe, out, "--resume", *OFTEN)
    assert same_student(finished, out)
    assert verify(str(out / "bank")) == []


def test_a_run_is_continued_by_one_process_at_a_time(
    recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "checkpoints/state.pt").stat().st_mtime_ns
    with lock_run(finished, resume=True):
        assert main(command, ["--recipe", str(recipe), "--out", str(finished), "--resume"]) == 2
    assert f"--out {finished} is in use by another process" in capsys.readouterr().err
    assert (finished / "checkpoints/state.pt").stat().st_mtime_ns == before


def test_a_run_that_another_process_has_started_meanwhile_is_left_alone(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, load = tmp_path / "out", networks.load

    def load_slowly(*arguments: Any) -> Any:
        out.mkdir()
        (out / "config.yaml").write_text("of another run")
        return load(*arguments)

    monkeypatch.setattr(networks, "load", load_slowly)
    assert main(command, ["--recipe", str(recipe), "--out", str(out)]) == 2
    assert f"--out {out} is not empty" in capsys.readouterr().err
    assert (out / "config.yaml").read_text() == "of another run"


def test_another_micro_batch_gives_the_same_images_up_to_rounding(recipe: Path, tmp_path: Path) -> None:
    images = []
    for size in ("8", "5"):
        run(recipe, tmp_path / size, "--augment.micro_batch", size, "--filter.quantile", "0")
        bank = BankReader.open(str(tmp_path / size / "bank"))
        counts = [len(bank.spans(number)) for number in bank.numbers]
        images.append(np.concatenate([bank.images(n, range(k)) for n, k in enumerate(counts)]).astype(int))
    whole, parts = images
    assert whole.shape == parts.shape == (4 * 6 * 4, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert (abs(whole - parts) <= 1).mean() >= 0.999


def test_the_test_set_is_read_once_after_the_last_step(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    steps_done = 0
    whole_train = Distiller.train

    def counting_train(self, *args, **kwargs) -> None:
        nonlocal steps_done
        whole_train(self, *args, **kwargs)
        steps_done = self.step

    decoded: list[int] = []
    read, decode = formats.open_path, source.decode

    def watched_open(data: str) -> LabeledSource:
        reads.append(steps_done)
        return read(data)

    def watched_decode(*arguments: Any) -> Any:
        decoded.append(steps_done)
        return decode(*arguments)

    monkeypatch.setattr(Distiller, "train", counting_train)
    monkeypatch.setattr(formats, "open_path", watched_open)
    monkeypatch.setattr(source, "decode", watched_decode)
    data = class_folders(tmp_path / "test", CLASS_NAMES)
    summary = run(recipe, tmp_path / "out", "--evaluate.data", str(data))
    assert reads == [0, 6], "the labels before the first step, the images after the last"
    assert decoded == 7 * [6]
    assert summary["accuracy_reason"] is None
    assert summary["test_set"] == {"data": str(data), "format": "class folders", "images": 7}
    by_class = summary["per_class"]
    assert {name: found["images"] for name, found in by_class.items()} == dict(
        zip(CLASS_NAMES, (2, 2, 3), strict=True)
    )
    for network in ("teacher", "student"):
        hits = sum(found["images"] * found[network] for found in by_class.values())
        assert summary[f"{network}_top1"] == pytest.approx(hits / 7)
        assert summary[f"{network}_top5"] is None, "three classes"


@pytest.mark.parametrize(
    ("half", "folders"),
    [("private", {"datasets", "pretraining"}), ("public", {"datasets", "pretraining", "exporting"})],
)
def test_the_loop_reads_no_training_half(half: str, folders: set[str]) -> None:
    """Pretraining reads both halves. The parity check of an export reads public images; the loop does not."""
    engine = Path(loop_module.__file__).parent
    naming = {
        path.relative_to(engine).parts[0]
        for path in engine.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == half
    }
    assert naming == folders
    importing = {
        path.relative_to(engine).parts[0]
        for path in engine.rglob("*.py")
        if "engine.exporting.real_inputs" in path.read_text()
    }
    assert importing == {"exporting"}


@pytest.mark.parametrize(
    "settings",
    [
        SYNTHESIS_ONLY,
        {"filter": {"method": "none", "quantile": None}},
        {"filter": {"class_gate": True}},
        {"synthesize": {"adversary": "kl", "start": "reuse"}},
        {"synthesize": {"adversary": "none", "start": "reinit", "warmup_steps": 0}},
        {"augment": {"strength": 0.5, "class_condition": "none"}},
    ],
    ids=["synthesis only", "no filter", "class gate", "kl adversary", "no adversary", "from the source"],
)
def test_every_combination_of_stages_trains_a_student(settings: dict[str, Any], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", schedule={"init_batches": 1}, **settings)
    summary = run(recipe, tmp_path / "out")
    augmented = settings.get("augment", {}).get("method") != "none"
    assert (summary["images_augmented"] > 0) == augmented
    assert (summary["clip_agreement"] is None) == (not augmented)
    student = load_file(tmp_path / "out" / "student.safetensors")
    assert all(value.isfinite().all() for value in student.values())
