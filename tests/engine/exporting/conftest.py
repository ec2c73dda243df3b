"""A recipe whose networks to export, and real images for the parity check."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny_recipe import write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), compute={"runtime": "auto", "threads": 1})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for index in range(3):
        pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def add_graphs(run_folder: Path) -> Callable[[Path], Path]:
    """Return a function that copies the graphs that this test run has exported so far to a folder."""

    def add(out: Path) -> Path:
        for entry in (run_folder / "engines").glob("*-onnx-*"):
            shutil.copytree(entry, out / entry.name)
        return out

    return add
