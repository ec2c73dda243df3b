"""A stranger's teacher, from one command to the accuracy of its student, with nothing written by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from engine.recipes.load import load_recipe

MODULE = """
from torch import nn

def network(num_classes, in_channels):
    made = nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
    made.pretrained_cfg = {"input_size": (in_channels, 20, 28), "mean": (0.2,), "std": (0.3,)}
    return made

def flat(num_classes, in_channels):
    made = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 560, num_classes))
    made.pretrained_cfg = {"input_size": (in_channels, 20, 28), "mean": (0.2,), "std": (0.3,)}
    return made
"""
ROOT = Path(__file__).parents[2]
CLASSES = ("bars", "rows", "spots")


def picture(kind: str, draw: np.random.Generator) -> np.ndarray:
    """Return a grey image of 20 x 28 pixels that a tiny network can learn to tell from the other kinds."""
    image = draw.integers(0, 60, (20, 28), np.uint8)
    offset, step = draw.integers(0, 4), draw.integers(4, 6)
    if kind == "bars":
        image[:, offset::step] = 250
    elif kind == "rows":
        image[offset::step] = 250
    else:
        image[offset::step, offset::step] = 250
    return image


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a module, a checkpoint of its trained network, and a test set."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "strangers_module.py").write_text(MODULE)
    scope: dict[str, object] = {}
    exec(MODULE, scope)  # noqa: S102
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = scope["network"](3, 1)
        train(network)
    torch.save({"model": {f"module.{k}": v for k, v in network.state_dict().items()}}, folder / "w.pth.tar")
    draw = np.random.default_rng(1)
    for kind in CLASSES:
        (folder / "test" / kind).mkdir(parents=True)
        for number in range(30):
            Image.fromarray(picture(kind, draw)).save(folder / "test" / kind / f"{number}.png")
    return folder


def train(network: nn.Module) -> None:
    draw = np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        labels = torch.from_numpy(draw.integers(0, 3, 32))
        pixels = np.stack([picture(CLASSES[label], draw) for label in labels])
        images = (torch.from_numpy(pixels)[:, None].float() / 255 - 0.2) / 0.3
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def python_m(home: Path, module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in the stranger's folder, which Python then finds modules in."""
    given = ["--teacher", "strangers_module:network", "--teacher.weights", "w.pth.tar", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", module, *given],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_command_gives_the_accuracy_of_teacher_and_student(home: Path) -> None:
    out = home / "run"
    counts = ["--schedule.kd_steps", "12", "--synthesize.batch_size", "24", "--distill.batch_size", "16"]
    command = python_m(
        home, "engine.run", "--evaluate.data", "test", "--out", "run", "--distill.flip", "false", *counts
    )
    assert command.returncode == 0, command.stderr
    assert "3 classes" in command.stdout
    recipe = load_recipe(str(out / "config.yaml"))
    assert (recipe.teacher.size, recipe.teacher.channels, recipe.teacher.classes) == ((20, 28), 1, 3)
    assert recipe.student.name.startswith("engine:")
    assert (recipe.augment.method, recipe.filter.method) == ("none", "none")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["teacher_top1"] > 0.9
    assert summary["student_top1"] > 0.4  # chance is a third; a few steps are enough to leave it
    assert summary["test_set"]["images"] == 90


def test_inspect_tells_what_it_sees_and_writes_a_recipe_that_loads(home: Path) -> None:
    kept = ["--distill.flip", "false", "--seed", "3", "--augment.prior", "later", "--augment.method", "none"]
    command = python_m(home, "engine.inspect", "--out", "mine.yaml", *kept)
    assert command.returncode == 0, command.stderr
    for seen in ("1 x 20x28", "3 (its weights)", "2 BatchNorm2d", "[16, 10, 14]", "torch "):
        assert seen in command.stdout
    given = yaml.safe_load((home / "mine.yaml").read_text())
    recipe = load_recipe(str(home / "mine.yaml"))
    assert recipe.is_read
    assert (recipe.seed, recipe.distill.flip) == (3, False)
    assert (recipe.augment.prior, recipe.augment.method) == ("later", "none")
    assert recipe.teacher.feature == given["teacher"]["feature"]
    again = python_m(home, "engine.inspect", "--out", "mine.yaml")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "exists already" in again.stderr


def test_an_inspected_recipe_runs_as_it_is_for_a_teacher_without_a_map_in_a_file_of_two(home: Path) -> None:
    states = {key: {"1.weight": torch.randn(3, 560), "1.bias": torch.zeros(3)} for key in ("raw", "ema")}
    torch.save(states, home / "two.pth")
    flags = (
        "--teacher",
        "strangers_module:flat",
        "--teacher.weights",
        "two.pth",
        "--teacher.in_channels",
        "1",
    )
    flags += ("--teacher.weights_key", "ema", "--student.in_channels", "3", "--compute.runtime", "torch")
    command = python_m(home, "engine.inspect", "--out", "flat.yaml", *flags)
    assert command.returncode == 0, command.stderr
    assert "none, so distill.w_feature is 0" in command.stdout
    recipe = load_recipe(str(home / "flat.yaml"))
    assert (recipe.teacher.weights_key, recipe.student.in_channels, recipe.teacher.in_channels) == (
        "ema",
        3,
        1,
    )
    assert (recipe.compute.runtime, recipe.compute.precision, recipe.feed.kind) == ("torch", "auto", "auto")
    assert recipe.distill.w_feature == 0
    given = yaml.safe_load((home / "flat.yaml").read_text())
    assert given["compute"] == {"runtime": "torch"}
    assert given["schedule"].keys() == {"init_batches", "rounds", "batches_per_round", "kd_steps"}
