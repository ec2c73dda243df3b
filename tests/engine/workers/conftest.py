"""One recipe of seconds, and its bank as this process alone makes it."""

from pathlib import Path

import pytest

from tests.engine.workers import generations
from tests.tiny_recipe import write_recipe

SHARDS = 12


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), synthesize={"steps": 30})


@pytest.fixture(scope="session")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("banks") / "undisturbed"
    generations.end(generations.start(recipe, out, "--shards", str(SHARDS)))
    return out
