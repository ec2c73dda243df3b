"""The files of an export compute what the run's student computes; otherwise they are not handed over."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from engine.bank.rows import Rows
from engine.bank.writer import BankWriter
from engine.cli.main import main
from engine.config.classifier import ClassifierConfig
from engine.config.recipe import Recipe
from engine.exporting import networks
from engine.exporting.checking import check
from engine.exporting.command import command
from engine.exporting.sample import read_sample
from engine.generation.provenance import bank_header
from engine.models.classifier import Classifier
from engine.models.loading import load_classifier
from engine.recipes.load import load_recipe
from engine.training.run_folder import commit_config, save_student
from engine.training.run_record import RunRecord
from tests.smooth_student import smooth

CLASSES, SIZE, MEAN, STD = 5, 24, [0.6, 0.3, 0.1], [0.2, 0.4, 0.3]
TINTS = np.array([[30, 0, 0], [0, 30, 0], [0, 0, 30], [25, 25, 0], [0, 25, 25]])
STUDENT = "tests.smooth_student:smooth"


def tinted(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """RGB images [N, 3, H, W] of noise with a tint, and the class of the tint."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, count)
    tints = TINTS[labels] + draw.normal(80, 9, (count, 3))
    images = draw.normal(0, 40, (count, 3, SIZE, SIZE)) + tints[..., None, None]
    return images.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def student() -> Classifier:
    """Return a briefly trained student, whose accuracy is far from chance and from perfect."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = smooth(CLASSES, 3)
        classifier = Classifier(
            network, num_classes=CLASSES, in_channels=3, mean=MEAN, std=STD, feature_path=None
        )
        optimizer = torch.optim.Adam(classifier.parameters(), 0.01)
        images, labels = tinted(256, 1)
        pixels, wanted = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
        for _ in range(25):
            loss = F.cross_entropy(classifier(pixels), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return classifier.eval()


@pytest.fixture(scope="module")
def run(student: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the student's run folder, with a bank; size, mean, std and network are not the defaults."""
    folder = tmp_path_factory.mktemp("tinted")
    save_file(student.network.state_dict(), folder / "teacher.safetensors")
    settings = {"num_classes": CLASSES, "in_channels": 3, "image_size": SIZE, "mean": MEAN, "std": STD}
    recipe = {
        "class_names": [f"tint {number}" for number in range(CLASSES)],
        "compute": {"device": "cpu", "precision": "fp32", "runtime": "torch", "threads": 1},
        "teacher": {"name": STUDENT, "weights": str(folder / "teacher.safetensors"), **settings},
        "student": {"name": STUDENT, **settings},
        "synthesize": {},
        "augment": {"method": "none"},
        "filter": {"method": "none"},
        "distill": {"w_feature": 0.0},
    }
    (folder / "tinted.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(str(folder / "tinted.yaml"))
    header, out = bank_header(loaded), folder / "run"
    out.mkdir()
    commit_config(out, loaded, RunRecord.of(loaded, header.facts))
    save_student(out, student.network)
    images, labels = tinted(40, 2)
    every, none = np.ones(40, bool), np.full(40, -1)
    rows = Rows(
        keys=np.arange(40),
        labels=labels,
        parents=none,
        seeds=np.arange(40),
        similarity=np.full(40, np.nan, np.float32),
        passes_clip=every,
        kept=every,
        teacher_top1=labels,
        confidence=np.ones(40, np.float32),
    )
    with BankWriter.open(str(out / "bank"), header, resume=False) as bank:
        bank.commit(0, rows, np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
    return out


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def exported(run: Path, out: Path) -> Path:
    """Return the folder of the student's ONNX file."""
    folder = out / "student/onnxruntime-fp32"
    assert folder.is_dir() or export(run, out) == 0
    return folder


def export(run: Path, out: Path, *flags: str, runtime: str = "onnxruntime") -> int:
    fixed = ["--runtime", runtime, "--precision", "fp32", "--compute.threads", "1"]
    return main(command, ["--run", str(run), "--out", str(out), *fixed, *flags])


def by_hand(card: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Do what a reader of the JSON does, with numpy and the runtime but without this project's code."""
    about = json.loads(card.read_text("utf-8"))
    assert (about["input"]["layout"], about["input"]["colour"]) == ("NCHW", "RGB")
    assert about["normalization"]["inside"]
    assert images.shape[1:] == tuple(about["input"][name] for name in ("channels", "height", "width"))
    pixels = images.astype(about["input"]["dtype"]) / 255
    given, wanted = about["input"]["name"], about["output"]["name"]
    model = card.parent / about["file"]
    if about["runtime"] == "openvino":
        from engine.runtime.openvino import core  # a process may have only one

        return core().compile_model(model, "CPU", about["options"])({given: pixels})[wanted]
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=[about["options"]["provider"]])
    return session.run([wanted], {given: pixels})[0]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_exported_student_scores_as_in_torch(
    runtime: str, run: Path, out: Path, student: Classifier, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run, out, runtime=runtime) == 0, "--network and --recipe are optional"
    folder = out / "student" / f"{runtime}-fp32"
    assert f"student.json, which says how to call it, are in {folder}" in capsys.readouterr().out
    images, labels = tinted(2000, 3)
    with torch.no_grad():
        wanted = (student(torch.from_numpy(images).float() / 255).argmax(1).numpy() == labels).mean()
    assert 0.5 < wanted < 0.98
    found = (by_hand(folder / "student.json", images).argmax(1) == labels).mean()
    assert found == pytest.approx(wanted, abs=0.001)

    about = json.loads((folder / "student.json").read_text())
    assert about["normalization"]["mean"] == MEAN
    assert about["output"]["classes"][4] == "tint 4"
    assert about["made_from"]["run"] == str(run)
    assert about["sha256"].keys() == {path.name for path in folder.iterdir()} - {"student.json"}
    assert about["sha256"].keys() == (
        {"student.onnx"} if runtime == "onnxruntime" else {"student.xml", "student.bin"}
    )
    for name, sha256 in (
        about["sha256"] | {run / "student.safetensors": about["made_from"]["sha256"]}
    ).items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    called = json.loads((out / "parity.json").read_text())["student"][f"{runtime} fp32"]["as_called"]
    assert called["passes"]
    assert (called["images"], called["source"]) == (40, f"of {run / 'bank'}")
    assert called["top1_agreement"] == 1
    assert called["relative_error"] < 1e-5


def test_a_wrong_mean_in_the_graph_is_caught(
    run: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph equals the network that it was exported from, but that network is not the run's."""

    def with_another_mean(config: ClassifierConfig, section: str, **options: Any) -> Classifier:
        return load_classifier(replace(config, mean=(0.219,)), section, **options)

    monkeypatch.setattr(networks, "load_classifier", with_another_mean)
    assert export(run, tmp_path) == 2
    line = capsys.readouterr().err
    assert "called as student.json says, does not match the student in torch: top-1 agreement" in line
    assert not list(tmp_path.glob("student/*"))


def altered(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def alter(about: dict[str, Any]) -> None:
        for key in keys[:-1]:
            about = about[key]
        about[keys[-1]] = value

    return alter


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (altered("normalization", "mean", value=[0.5, 0.3, 0.1]), "says mean [0.5, 0.3, 0.1], but the"),
        (altered("normalization", "inside", value=False), "top-1 agreement"),
        (altered("input", "range", value=[0, 255]), "top-1 agreement"),
        (altered("input", "height", value=32), "says 32x24 pixels"),
        (altered("output", "classes", value=["a"]), "lists 1 classes"),
        (altered("network", value="any"), None),
    ],
    ids=["mean", "inside", "range", "size", "classes", "another key"],
)
def test_a_wrong_value_in_the_json_is_caught(
    alter: Callable[[dict[str, Any]], None], words: str | None, run: Path, exported: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    about = json.loads((folder / "student.json").read_text())
    alter(about)
    (folder / "student.json").write_text(json.dumps(about))
    config = replace(recipe_of(run).student, weights=str(run / "student.safetensors"))
    found = check(
        folder, "student", config, read_sample([str(run / "bank")], (SIZE, SIZE)), "fp32", threads=1
    )
    assert found.passes == (words is None)
    assert words is None or words in str(found)


def recipe_of(run: Path) -> Recipe:
    return load_recipe(str(run / "config.yaml"))


def test_a_run_without_its_bank_is_checked_on_random_images(run: Path) -> None:
    sample = read_sample([str(run / "no bank")], (SIZE, SIZE))
    assert sample.images.shape[1:] == (3, SIZE, SIZE)
    assert sample.source.startswith("of random pixels (")
    assert "no bank has no manifest.json" in sample.source


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--student.mean", "[0.2]"], "in student.mean: (0.6, 0.3, 0.1) -> (0.2,); leave out --recipe and"),
        (["--recipe", "fashion-mnist"], "config.yaml in name: 'tinted' -> 'fashion-mnist'; leave out"),
        (["--teacher.image_size", "32", "--student.image_size", "32"], "teacher.image_size: 24 -> 32"),
    ],
)
def test_what_contradicts_the_run_is_refused(
    flags: list[str], words: str, run: Path, tmp_path: Path, capsys
) -> None:
    assert export(run, tmp_path / "out", *flags) == 2
    line = capsys.readouterr().err
    assert f"--run {run}: this command differs" in line
    assert words in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_the_runs_are_refused(run: Path, tmp_path: Path, capsys) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    state = load_file(copy / "student.safetensors")
    save_file({name: value * 2 for name, value in state.items()}, copy / "student.safetensors")
    assert export(copy, tmp_path / "out") == 2
    assert f"--run {copy}: student.safetensors is not the file that this run wrote" in capsys.readouterr().err

    teacher = tmp_path / "teacher.safetensors"
    flags = ["--network", "teacher", "--teacher.weights", str(teacher)]
    save_file({name: value * 2 for name, value in state.items()}, teacher)
    shutil.copy(run / "student.safetensors", copy)
    assert export(copy, tmp_path / "out", *flags) == 2
    line = capsys.readouterr().err
    assert f"--run {copy} was made with another teacher: its sha256 was" in line
    assert str(teacher) in line
