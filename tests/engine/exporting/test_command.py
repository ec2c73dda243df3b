"""`python -m export` on tiny real models: what it writes, what it builds again, what it rejects."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.cli.main import main
from engine.exporting import networks
from engine.exporting.command import command
from engine.hardware import native_precision
from engine.recipes.load import load_recipe
from export.onnx.statistics import narrow_weights
from tests.tiny_recipe import write_recipe

NETWORKS = {"teacher", "clip", "image_encoder", "unet", "vae_encoder", "vae_decoder"}


@pytest.fixture(scope="module")
def exported(
    recipe: Path,
    images: Path,
    add_graphs: Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    pytest.importorskip("tensorrt_rtx")
    out = add_graphs(tmp_path_factory.mktemp("exported"))
    assert main(command, arguments(recipe, out, "--images", str(images))) == 0
    return out


def arguments(recipe: Path, out: Path, *more: str, runtime: str = "tensorrt") -> list[str]:
    return ["--recipe", str(recipe), "--out", str(out), "--runtime", runtime, *more]


def test_the_exported_teacher_has_all_maps_that_distillation_aligns(recipe: Path) -> None:
    settings = {"distill.taps": {"stages.0": "stages.1", "relu": "stages.1"}}
    teacher = networks.Networks(load_recipe(str(recipe), settings), "onnxruntime", None).load("teacher")
    assert teacher.outputs == ("logits", "network.relu", "network.stages.0")


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "parity.json").read_text())


def test_each_network_has_a_graph_an_engine_and_a_parity(exported: Path) -> None:
    assert report(exported).keys() == NETWORKS
    for network, targets in report(exported).items():
        entry = targets["tensorrt fp16"]
        assert entry["precision"] == "fp16"
        graph, engine = (exported / folder for folder in entry["entries"])
        assert graph.name.startswith(f"{network}-onnx-fp16-")
        assert (graph / "model.onnx").stat().st_size > 1000
        assert engine.name.startswith(f"{network}-tensorrt-fp16-")
        assert (engine / "model.engine").stat().st_size > 1000
        kinds = next(iter(entry["parity"].values()))
        assert kinds.keys() == {"random", "real"}
        for found in kinds.values():
            assert found["finite"]
            assert 0 < found["relative_error"] < 2e-2
            assert found["cosine"] > 0.999


@pytest.mark.parametrize(
    ("runtime", "precision", "tolerance"),
    [
        ("openvino", "fp32", 1e-4),
        ("openvino", "bf16", 2e-2),
        ("onnxruntime", "fp32", 1e-4),
        ("onnxruntime", "fp16", 2e-2),
    ],
)
def test_runtimes_reproduce_torch(
    recipe: Path, images: Path, exported: Path, runtime: str, precision: str, tolerance: float
) -> None:
    if precision == "bf16":
        from engine.hardware import BF16_INSTRUCTIONS
        from kernels import cpu_features

        if not BF16_INSTRUCTIONS.intersection(cpu_features()):
            pytest.skip("this processor has no bf16")
    flags = ["--precision", precision, "--images", str(images)]
    assert main(command, arguments(recipe, exported, *flags, runtime=runtime)) == 0
    for network, targets in report(exported).items():
        entry = targets[f"{runtime} {precision}"]
        assert entry["precision"] == precision, network
        for found in entry["parity"][f"{runtime} {precision}"].values():
            assert found["finite"]
            assert found["relative_error"] <= tolerance
    assert "tensorrt fp16" in report(exported)["teacher"], "earlier entries stay"


def test_a_second_call_loads_nothing(
    recipe: Path, images: Path, exported: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(networks, "load_classifier", never)
    monkeypatch.setattr(networks, "load_prior", never)
    monkeypatch.setattr(networks, "load_clip", never)
    assert main(command, arguments(recipe, exported, "--images", str(images))) == 0
    printed = capsys.readouterr().out
    assert "is up to date" in printed
    assert "unet           fp16" in printed


def test_the_report_describes_the_requested_recipe(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engines"
    other = shutil.copytree(recipe.parent, tmp_path / "other")
    state = load_file(other / "teacher.safetensors")
    state["conv1.weight"] *= 1.5
    save_file(state, other / "teacher.safetensors")
    text = recipe.read_text()
    assert str(recipe.parent) in text
    (other / recipe.name).write_text(text.replace(str(recipe.parent), str(other)))
    reports, tables = [], []
    for requested in (recipe, other / recipe.name, recipe, recipe):
        flags = ["--network", "teacher"]
        assert main(command, arguments(requested, out, *flags, runtime="onnxruntime")) == 0
        reports.append(report(out)["teacher"]["onnxruntime fp32"])
        tables.append(capsys.readouterr().out)
    assert "is up to date" not in tables[2], "the other recipe's model is in the folder"
    assert "is up to date" in tables[3]
    assert reports[0]["parity"] == reports[2]["parity"]
    assert reports[2] == reports[3]
    assert reports[0]["entries"] == reports[2]["entries"] != reports[1]["entries"]
    assert tables[2].splitlines()[-2:] == tables[3].splitlines()[-2:]
    about = json.loads((out / "teacher/onnxruntime-fp32/teacher.json").read_text())
    assert about["made_from"]["weights"] == str(recipe.parent / "teacher.safetensors")


@pytest.mark.parametrize("damage", ["{", "[]", '{"teacher": 1}', '{"teacher": {}}', "{}", None])
def test_a_report_that_is_damaged_or_lacks_a_network_is_written_again(
    recipe: Path,
    tmp_path: Path,
    add_graphs: Callable[[Path], Path],
    capsys: pytest.CaptureFixture[str],
    damage: str | None,
) -> None:
    out = add_graphs(tmp_path / "engines")
    flags = arguments(recipe, out, "--network", "teacher", runtime="onnxruntime")
    assert main(command, flags) == 0
    whole = report(out)
    if damage is None:
        (out / "parity.json").unlink()
    else:
        (out / "parity.json").write_text(damage)
    capsys.readouterr()
    assert main(command, flags) == 0
    printed = capsys.readouterr().out
    assert "is up to date" in printed
    assert report(out) == whole
    damaged = damage in ("{", "[]", '{"teacher": 1}')
    assert printed.count("parity.json was damaged and is replaced") == damaged


def test_a_damaged_report_does_not_end_an_export(
    recipe: Path, tmp_path: Path, add_graphs: Callable[[Path], Path]
) -> None:
    out = add_graphs(tmp_path)
    (out / "parity.json").write_text("{")
    assert main(command, arguments(recipe, out, "--network", "teacher", runtime="onnxruntime")) == 0
    assert report(out)["teacher"]["onnxruntime fp32"]["parity"]


SECOND = """
import atexit, runpy, sys
atexit.register(lambda: print("torch" in sys.modules))
runpy.run_module("export", run_name="__main__", alter_sys=True)
"""


def test_a_second_process_imports_no_torch(recipe: Path, images: Path, exported: Path) -> None:
    flags = arguments(recipe, exported, "--images", str(images))
    done = subprocess.run([sys.executable, "-c", SECOND, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is up to date" in done.stdout
    assert done.stdout.endswith("False\n")


def test_a_changed_weight_builds_that_network_again_and_logs_why(
    recipe: Path, images: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engines"
    shutil.copytree(exported, out)
    weights = recipe.parent / "teacher.safetensors"
    before = weights.read_bytes()
    try:
        state = load_file(weights)
        state["conv1.weight"][0, 0, 0, 0] += 1e-3
        save_file(state, weights)
        assert main(command, arguments(recipe, out, "--images", str(images))) == 0
    finally:
        weights.write_bytes(before)
    logged = capsys.readouterr().out
    assert "teacher: weights changed, building onnx fp16 again" in logged
    assert "teacher: graph changed, building tensorrt fp16 again" in logged
    assert logged.count("building") == 2, "the others are taken from the folder"


def test_a_tampered_engine_is_refused(exported: Path, tmp_path: Path) -> None:
    from engine.runtime import artifacts
    from export.errors import ExportError
    from export.store import Store

    out = tmp_path / "engines"
    shutil.copytree(exported, out)
    entry = out / report(out)["teacher"]["tensorrt fp16"]["entries"][1]
    data = bytearray((entry / artifacts.ENGINE).read_bytes())
    data[100] ^= 1
    (entry / artifacts.ENGINE).write_bytes(data)
    with pytest.raises(ExportError, match=entry.name):
        Store(out).read(entry, artifacts.ENGINE)


def test_a_bf16_graph_that_is_wrong_is_caught_without_a_gpu(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parity check runs the exported graph, not the module."""
    pytest.importorskip("tensorrt_rtx")

    def altered(model: ir.Model) -> None:
        narrow_weights(model)
        for value in model.graph.initializers.values():
            if value.dtype == ir.DataType.BFLOAT16 and value.const_value is not None:
                doubled = 2 * value.const_value.numpy()
                value.const_value = ir.tensor(doubled, dtype=ir.DataType.BFLOAT16, name=value.name)

    monkeypatch.setattr("export.onnx.graph.narrow_weights", altered)
    flags = arguments(recipe, tmp_path / "out", "--network", "teacher", "--precision", "bf16")
    assert main(command, flags) == 0
    logged = capsys.readouterr().out
    assert re.search(r"teacher: tensorrt bf16 gives relative error .*; falling back to fp32", logged)


def test_activations_beyond_fp16_fall_back_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    recipe = write_recipe(tmp_path / "recipe", compute={"runtime": "auto", "threads": 1})
    weights = tmp_path / "recipe" / "teacher.safetensors"
    state = load_file(weights)
    state["conv1.weight"] *= 1e7
    save_file(state, weights)
    out = tmp_path / "engines"
    assert main(command, arguments(recipe, out, "--network", "teacher")) == 0
    logged = capsys.readouterr().out
    assert "teacher: tensorrt fp16 gives numbers that are not finite; falling back to bf16" in logged
    entry = report(out)["teacher"]["tensorrt fp16"]
    assert entry["precision"] == "bf16"
    assert not entry["parity"]["onnxruntime fp16"]["random"]["finite"]
    (by,) = entry["parity"].keys() - {"onnxruntime fp16"}
    assert by == f"openvino {native_precision('cpu')}", "the graph itself ran"
    assert entry["parity"][by]["random"]["passes"]
    assert entry["parity"][by]["random"]["precision"] == "bf16"
    assert not list(out.glob("teacher-openvino-*"))
    assert entry["no_real_images"].startswith("no real images: give a folder")
    assert entry["entries"][1].startswith("teacher-tensorrt-bf16-")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--network", "teacher,nothing"],
            "--network: unknown network 'nothing'; choose from teacher, clip, unet, vae, student",
        ),
        (["--network", "student"], "--network student needs --run DIR"),
        (
            ["--network", "student", "--run", "no/such/run"],
            "--run no/such/run has no config.yaml; give the folder of a finished run",
        ),
        (["--images", "no/such/folder"], "--images no/such/folder holds no"),
        (["--runtime", "torch"], "--runtime torch has nothing to export"),
        (["--runtime", "openvino", "--precision", "fp16"], "openvino computes in fp32 or bf16 on a CPU"),
        (["--runtime", "onnxruntime", "--precision", "bf16"], "onnxruntime has no bf16 on a CPU"),
        (["--tensorrt.compute_capabilities", "[9.7]"], "cannot build for compute capability 9.7"),
        (["--tensorrt.refit", "stripped"], "needs an NVIDIA GPU to build with refit=stripped"),
    ],
)
def test_bad_requests_are_one_line(
    recipe: Path, tmp_path: Path, capsys, flags: list[str], words: str
) -> None:
    if torch.cuda.is_available() and "refit" in flags[0]:
        pytest.skip("this error is for machines without a GPU")
    common = ["--recipe", str(recipe), "--out", str(tmp_path), "--network", "teacher"]
    runtime = [] if "--runtime" in flags else ["--runtime", "tensorrt"]
    assert main(command, [*common, *runtime, *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_out_is_required(recipe: Path, capsys) -> None:
    assert main(command, ["--recipe", str(recipe)]) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_a_file_that_is_no_image_is_named(recipe: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"nothing")
    flags = ["--network", "teacher", "--images", str(folder)]
    assert main(command, arguments(recipe, tmp_path / "out", *flags, runtime="openvino")) == 2
    assert "broken.png cannot be read as an image" in capsys.readouterr().err
