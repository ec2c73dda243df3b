"""`python -m engine.evaluate`: runs of this and earlier versions, files of weights, ONNX files."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array
from safetensors.torch import load_file, save_file

from engine import run as run_module
from engine.bank.manifest import Manifest
from engine.bank.merge import MERGED
from engine.cli.main import main
from engine.config.recipe import Recipe, to_yaml
from engine.errors import UserError
from engine.evaluate import command, evaluate_run
from engine.exporting.command import command as export
from engine.generation.provenance import bank_header, weights_of
from engine.models.classifier import Classifier
from engine.models.loading import load_classifier
from engine.models.networks import wrn_16_1
from engine.recipes.load import load_recipe
from engine.training.run_folder import check, commit_config, own_recipe, save_student
from engine.training.run_record import RunRecord
from tests.labeled_images import LABELS, class_folders, pixels, shards
from tests.tiny_priors import CLASS_NAMES
from tests.tiny_recipe import write_recipe


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a recipe without a prior."""
    none: dict[str, Any] = {"method": "none"}
    return write_recipe(
        tmp_path_factory.mktemp("plain"),
        augment={**none, "prior": "", "class_condition": "none"},
        filter={**none, "model": "", "quantile": None},
    )


@pytest.fixture(scope="module")
def own(plain: Path) -> Recipe:
    return load_recipe(str(plain))


@pytest.fixture(scope="module")
def run(own: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run with a random student that sees several classes."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    out.mkdir()
    commit_config(out, own, RunRecord.of(own, weights_of(own)))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        student = wrn_16_1(3, 1).eval()
    config = own.student
    classifier = Classifier(
        student, num_classes=3, in_channels=1, mean=config.mean, std=config.std, feature_path=None
    )
    with torch.no_grad():  # or it would see one class in every image of noise
        student.fc.bias -= classifier(torch.from_numpy(pixels()).permute(0, 3, 1, 2).float() / 255).mean(0)
    save_student(out, student)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("data"), CLASS_NAMES, LABELS)


def predicted(recipe: Recipe, weights: Path | str) -> torch.Tensor:
    """Return the classes of the images, in the order of the folders."""
    order = sorted(range(len(LABELS)), key=lambda row: (CLASS_NAMES[LABELS[row]], row))
    images = torch.from_numpy(pixels()[order]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return load_classifier(replace(recipe.student, weights=str(weights)), "student")(images).argmax(1)


def labels() -> torch.Tensor:
    return torch.tensor(sorted(LABELS, key=lambda label: CLASS_NAMES[label]))


def share(hits: torch.Tensor) -> float:
    return hits.double().mean().item()


@pytest.fixture
def measured(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the command and returns the JSON in its last line."""

    def call(*arguments: object) -> dict[str, Any]:
        assert main(command, [*map(str, arguments), "--quiet"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(command, [*map(str, arguments)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line


def test_a_run_is_measured_on_any_test_set(run: Path, own: Recipe, data: Path, measured) -> None:
    teacher, student = predicted(own, own.teacher.weights), predicted(own, run / "student.safetensors")
    assert len(set(student.tolist())) > 1, "or a mistake in order or size would not show"
    found = measured("--run", run, "--data", data)
    assert found == {
        "teacher_top1": pytest.approx(share(teacher == labels())),
        "student_top1": pytest.approx(share(student == labels())),
        "teacher_top5": None,
        "student_top5": None,
        "agreement": pytest.approx(share(teacher == student)),
        "images": 7,
        "data": str(data),
        "format": "class folders",
    }
    by_class = measured("--run", run, "--data", data, "--per_class")["per_class"]
    assert by_class == {
        name: {
            "images": LABELS.count(index),
            "teacher": pytest.approx(share(teacher[labels() == index] == index)),
            "student": pytest.approx(share(student[labels() == index] == index)),
        }
        for index, name in enumerate(CLASS_NAMES)
    }
    assert evaluate_run(run, data=str(data))["per_class"] == by_class


def test_the_tables_show_each_network_and_on_request_each_class(run: Path, data: Path, capsys) -> None:
    assert main(command, ["--run", str(run), "--data", str(data)]) == 0
    text = capsys.readouterr().out
    for part in ("teacher", "student", "top-1", f"7 images of {data} (class folders)", "agree on"):
        assert part in text
    assert CLASS_NAMES[2] not in text
    assert main(command, ["--run", str(run), "--data", str(data), "--per-class"]) == 0
    assert all(f" {name} " in capsys.readouterr().out for name in CLASS_NAMES[:1])


@pytest.mark.parametrize(("dataset", "now"), [("none", None), ("fashion-mnist", "fashion-mnist")])
def test_a_run_of_an_earlier_version_is_measured_and_resumed(
    dataset: str, now: str | None, run: Path, own: Recipe, data: Path, measured, tmp_path: Path
) -> None:
    old = shutil.copytree(run, tmp_path / "old")
    settings = yaml.safe_load(to_yaml(own))
    settings["evaluate"] = {"dataset": dataset, "root": None}
    (old / "config.yaml").write_text(yaml.safe_dump(settings))
    assert own_recipe(old).evaluate.data == now
    assert measured("--run", old, "--data", data) == measured("--run", run, "--data", data)
    check(old, own_recipe(old), resume=True)
    check(old, load_recipe(str(write_to(tmp_path / "new.yaml", own, str(data)))), resume=True)


def write_to(path: Path, recipe: Recipe, data: str) -> Path:
    """Write the recipe with another test set."""
    path.write_text(yaml.safe_dump(yaml.safe_load(to_yaml(recipe)) | {"evaluate": {"data": data}}))
    return path


def test_a_bank_of_an_earlier_version_is_read_with_its_test_set(own: Recipe) -> None:
    header = bank_header(own)
    header.recipe["evaluate"] = {"dataset": "fashion-mnist", "root": "/x"}
    read = Manifest.from_json(Manifest(header=header).to_json(), "bank")
    assert read.header.recipe["evaluate"] == {"data": "fashion-mnist", "root": "/x"}
    header.recipe["evaluate"] = {"dataset": "none", "root": None}
    merged = {MERGED: {"bank 0": header.recipe}}
    object.__setattr__(header, "recipe", merged)
    read = Manifest.from_json(Manifest(header=header).to_json(), "bank")
    assert read.header.recipe[MERGED]["bank 0"]["evaluate"] == {"data": None, "root": None}


def test_the_key_of_an_earlier_version_is_refused_in_a_recipe(own: Recipe, tmp_path: Path, capsys) -> None:
    words = (
        "unknown key 'evaluate.dataset' in {}; write evaluate.data: fashion-mnist, or null instead of none"
    )
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(to_yaml(own)) | {"evaluate": {"dataset": "none"}}))
    with pytest.raises(UserError, match=words.format(f"recipe '{path}'")):
        load_recipe(str(path))
    assert main(run_module.command, ["--evaluate.dataset", "none"]) == 2
    assert words.format("the command line") in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_are_measured_with_a_recipe(
    suffix: str, run: Path, plain: Path, own: Recipe, data: Path, tmp_path: Path, measured
) -> None:
    state = load_file(run / "student.safetensors")
    path = tmp_path / f"any.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save({"state_dict": state}, path)
    wanted = measured("--run", run, "--data", data)
    assert measured("--recipe", plain, "--student", path, "--data", data) == wanted
    swapped = measured("--recipe", plain, "--teacher", path, "--data", data)
    assert "student_top1" not in swapped
    assert (swapped["teacher_top1"], swapped["agreement"]) == (wanted["student_top1"], None)
    own_test_set = write_to(tmp_path / "with-data.yaml", own, str(data))
    assert measured("--recipe", own_test_set)["teacher_top1"] == wanted["teacher_top1"]
    assert measured("--run", run, "--teacher", path, "--data", data)["agreement"] == 1


def test_what_a_recipe_leaves_open_is_read_from_the_teacher(
    run: Path, own: Recipe, data: Path, tmp_path: Path, measured
) -> None:
    settings = yaml.safe_load(to_yaml(own))
    settings["student"] = {"name": own.student.name}
    settings["teacher"] |= {"num_classes": None, "in_channels": None}
    (tmp_path / "open.yaml").write_text(yaml.safe_dump(settings))
    flags = ["--student", run / "student.safetensors", "--data", data]
    assert measured("--recipe", tmp_path / "open.yaml", *flags) == measured("--run", run, "--data", data)


def test_another_network_can_be_named(plain: Path, data: Path, tmp_path: Path, measured) -> None:
    from engine.models.networks import wrn_16_2

    with torch.random.fork_rng():
        torch.manual_seed(6)
        save_file(wrn_16_2(3, 1).state_dict(), tmp_path / "wide.safetensors")
    flags = ["--recipe", plain, "--student", tmp_path / "wide.safetensors", "--data", data]
    assert 0 <= measured(*flags, "--student.name", "engine:wrn_16_2")["student_top1"] <= 1
    assert main(command, list(map(str, flags))) == 2


def test_settings_of_the_networks_can_be_given_with_a_recipe(
    run: Path, plain: Path, own: Recipe, data: Path, measured, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run / "student.safetensors"
    flags = [
        "--recipe",
        plain,
        "--student",
        weights,
        "--data",
        data,
        "--student.mean",
        "[0.9]",
        "--student.std=[1]",
    ]
    other = replace(own, student=replace(own.student, mean=(0.9,), std=(1.0,)))
    assert measured(*flags)["student_top1"] == share(predicted(other, weights) == labels())
    line = refused(capsys, "--recipe", plain, "--data", data, "--student.means", "[0.9]")
    assert "did you mean 'student.mean'?" in line
    line = refused(capsys, "--run", run, "--data", data, "--teacher.mean", "[0.9]")
    assert "--teacher.mean needs --recipe R; a run has its own settings" in line
    assert "expected one argument" in refused(capsys, "--recipe", plain, "--teacher.mean")
    assert "expected one argument" in refused(capsys, "--teacher.mean", "--recipe", plain)
    assert "'[0.5,' is not a value" in refused(capsys, "--recipe", plain, "--teacher.mean", "[0.5,", "0.5]")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ONNX file of the run's student, as `python -m export` writes it."""
    out = tmp_path_factory.mktemp("exported")
    flags = ["--runtime", "onnxruntime", "--precision", "fp32", "--threads", "1"]
    assert main(export, ["--run", str(run), "--out", str(out), *flags]) == 0
    return out / "student/onnxruntime-fp32/student.onnx"


def test_an_export_is_measured_as_its_json_says(exported: Path, run: Path, data: Path, measured) -> None:
    wanted = measured("--run", run, "--data", data, "--per-class")
    alone = measured("--onnx", exported, "--data", data, "--per-class")
    assert alone["onnx_top1"] == wanted["student_top1"]
    assert {name: found["onnx"] for name, found in alone["per_class"].items()} == {
        name: found["student"] for name, found in wanted["per_class"].items()
    }
    both = measured("--run", run, "--onnx", exported, "--data", data)
    assert (both["onnx_top1"], both["agreement"]) == (wanted["student_top1"], wanted["agreement"])
    assert both["teacher_top1"] == wanted["teacher_top1"]


def test_an_export_that_is_not_as_its_json_says_is_refused(
    exported: Path, run: Path, plain: Path, data: Path, tmp_path: Path, capsys
) -> None:
    folder = shutil.copytree(exported.parent, tmp_path / "copy")
    model, card = folder / "student.onnx", folder / "student.json"
    about = json.loads(card.read_text())
    about["output"]["classes"] = ["a", "b", "c"]
    card.write_text(json.dumps(about))
    words = refused(capsys, "--onnx", model, "--run", run, "--data", data)
    assert "student.json says other classes or another size than the recipe" in words
    whole = model.read_bytes()
    model.write_bytes(whole + b"\0")
    words = refused(capsys, "--onnx", model, "--data", data)
    assert f"{model} is not the file that student.json describes" in words
    card.write_text("{}")
    assert f"{card} is not the JSON of an export" in refused(capsys, "--onnx", model, "--data", data)
    card.unlink()
    model.write_bytes(whole)
    words = refused(capsys, "--onnx", model, "--data", data)
    assert (
        "has no student.json next to it, so its classes, size, mean and std are unknown; add --recipe"
        in words
    )
    words = refused(capsys, "--onnx", model, "--recipe", plain, "--data", data)
    assert "takes images tensor(float) ['batch', 3, 16, 16]" in words
    assert "the recipe's student takes float images [B, 1, 16, 16]" in words
    model.write_bytes(b"no model")
    assert "cannot be opened in ONNX Runtime" in refused(
        capsys, "--onnx", model, "--recipe", plain, "--data", data
    )


@pytest.mark.parametrize("rows", [4, None], ids=["batches of four", "any batch"])
def test_a_foreign_model_is_measured_as_the_recipe_says(
    rows: int | None, run: Path, plain: Path, own: Recipe, data: Path, tmp_path: Path, measured
) -> None:
    """It takes one normalized channel, in batches of four or of any size; there are seven images."""
    from dataclasses import replace

    student = load_classifier(replace(own.student, weights=str(run / "student.safetensors")), "student")
    batch = None if rows else {0: torch.export.Dim("batch")}
    path = tmp_path / "foreign.onnx"
    torch.onnx.export(
        student.network, (torch.rand(4, 1, 16, 16),), path, dynamo=True, dynamic_shapes=[batch], verbose=False
    )
    found = measured("--onnx", path, "--recipe", plain, "--data", data)
    wanted = measured("--run", run, "--data", data)
    assert (found["onnx_top1"], found["agreement"]) == (wanted["student_top1"], wanted["agreement"])
    assert "student_top1" not in found


def onnx_file(path: Path, outputs: dict[str, tuple[int, ...]], weight: np.ndarray) -> Path:
    """Write a model whose outputs are all the same logits, the pixels times `weight`, in these shapes."""
    nodes = [helper.make_node("Flatten", ["images"], ["pixels"])]
    nodes += [helper.make_node("MatMul", ["pixels", "weight"], ["logits"])]
    nodes += [helper.make_node("Reshape", ["logits", f"{name} shape"], [name]) for name in outputs]
    shapes = [from_array(np.array(shape), f"{name} shape") for name, shape in outputs.items()]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 1, 16, 16])
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *shape[1:]])
        for name, shape in outputs.items()
    ]
    graph = helper.make_graph(nodes, "x", [images], given, [*shapes, from_array(weight, "weight")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_sides_of_1_after_the_logits_do_not_count(plain: Path, data: Path, tmp_path: Path, measured) -> None:
    weight = np.random.default_rng(0).standard_normal((256, 3)).astype(np.float32)
    outputs = {"flat": (-1, 3)}, {"map": (-1, 3, 1, 1)}, {"map": (-1, 3, 1, 1), "other": (-1, 1, 3)}
    found = [
        measured(
            "--onnx", onnx_file(tmp_path / f"{number}.onnx", each, weight), "--recipe", plain, "--data", data
        )
        for number, each in enumerate(outputs)
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("shape", [(-1, 4), (-1, 4, 1), (-1, 2, 2), (-1,)])
def test_a_model_of_other_logits_is_refused(
    shape: tuple[int, ...], plain: Path, data: Path, tmp_path: Path, capsys
) -> None:
    model = onnx_file(tmp_path / "x.onnx", {"out": shape}, np.ones((256, 4), np.float32))
    words = refused(capsys, "--onnx", model, "--recipe", plain, "--data", data)
    given = list(np.empty((7, 4)).reshape(shape).shape)
    assert f"x.onnx returns out {given} for 7 images, not [7, 3]; give the recipe of this model" in words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "nothing to measure; give --run DIR"),
        (["--student", "x.pth"], "--student needs --recipe R"),
        (["--run", "RUN", "--recipe", "RECIPE"], "leave out --recipe"),
        (["--run", "RUN"], "no test set: evaluate.data is null; give --data with a path"),
        (["--run", "RUN", "--data", "nowhere"], "'nowhere' does not exist"),
        (["--run", "RUN", "--data", "OTHER"], "classes that class_names lacks"),
        (
            ["--run", "RUN", "--data", "DATA", "--root", "x"],
            "evaluate.root is x, but evaluate.data is a path",
        ),
        (["--onnx", "x.onnx", "--data", "DATA"], "--onnx x.onnx does not exist"),
        (["--run", "RUN", "--dataset", "none"], "--dataset"),
        (["--recipe", "RECIPE", "--student", "x.pth", "--data", "DATA"], "'x.pth' does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_refused(
    flags: list[str], words: str, run: Path, plain: Path, data: Path, tmp_path: Path, capsys
) -> None:
    other = shards(tmp_path / "other", ["x", "y", "z", "x", "y", "z", "x"])
    known = {"RUN": run, "RECIPE": plain, "DATA": data, "OTHER": other}
    assert words in refused(capsys, *(known.get(flag, flag) for flag in flags))
