"""What the loop refuses: unusable files, settings that do not fit, and damaged checkpoints."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.cli.main import main
from engine.errors import UserError
from engine.loop import run as run_loop
from engine.models.networks import wrn_16_1
from engine.progress import Progress
from engine.recipes.load import load_recipe
from engine.run import command
from tests.loop_runs import run
from tests.tiny_recipe import write_recipe


def save_seven_classes(folder: Path) -> None:
    save_file(wrn_16_1(7, 1).state_dict(), folder / "teacher.safetensors")


def point_at(name: str, content: object) -> Callable[[Path], None]:
    """Save `content` in the pickle file `name` and make the recipe use it."""

    def break_it(folder: Path) -> None:
        torch.save(content, folder / name)
        recipe = folder / "tiny.yaml"
        recipe.write_text(recipe.read_text().replace("teacher.safetensors", name))

    return break_it


def add_unknown_key(folder: Path) -> None:
    with (folder / "tiny.yaml").open("a") as file:
        file.write("distil:\n  lr: 0.1\n")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            lambda folder: (folder / "teacher.safetensors").unlink(),
            ["teacher.weights", "teacher.safetensors"],
        ),
        (lambda folder: truncate(folder / "teacher.safetensors"), ["teacher.weights", "teacher.safetensors"]),
        (save_seven_classes, ["teacher.weights", "7", "teacher.num_classes", "3"]),
        (point_at("list.pth", [1, 2]), ["teacher.weights", "list.pth", "state dict"]),
        (point_at("code.pth", Path("x")), ["teacher.weights", "code.pth"]),
        (add_unknown_key, ["distil", "tiny.yaml"]),
        (
            lambda folder: truncate(folder / "prior/unet/diffusion_pytorch_model.safetensors"),
            ["augment.prior"],
        ),
        (lambda folder: truncate(folder / "clip/open_clip_model.safetensors"), ["filter.model"]),
        (lambda folder: (folder / "prior/model_index.json").unlink(), ["augment.prior", "model_index.json"]),
    ],
    ids=[
        "missing weights",
        "corrupt weights",
        "wrong class count",
        "not a state dict",
        "pickled code",
        "unknown key",
        "corrupt unet",
        "corrupt clip",
        "no pipeline",
    ],
)
def test_unusable_files_are_one_line_and_leave_no_folder(
    break_it: Callable[[Path], None], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    break_it(tmp_path / "recipe")
    assert main(command, ["--recipe", str(recipe), "--out", str(tmp_path / "out")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert all(word in lines[0] for word in words)
    assert not (tmp_path / "out").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--teacher.num_classes", "7"], ["num_classes", "7"]),
        (["--teacher.name", "engine:lenet_5"], ["teacher.weights", "teacher.safetensors"]),
        (["--filter.quantile", "null", "--filter.omega", "2"], ["filter.omega", "2"]),
    ],
    ids=["class count", "another network", "omega"],
)
def test_settings_that_do_not_fit_are_one_line(
    recipe: Path, arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command, ["--recipe", str(recipe), "--out", str(tmp_path / "out"), *arguments]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in line for word in words)


def test_a_damaged_checkpoint_is_named(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(recipe, out)
    truncate(out / "checkpoints/state.pt")
    settings = load_recipe(str(out / "config.yaml"))
    with pytest.raises(UserError, match=r"checkpoint .*state\.pt"), Progress(quiet=True) as progress:
        run_loop(replace(settings), out, resume=True, progress=progress)
